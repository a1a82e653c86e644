"""Watching a batch until it has ended: how far it is, how fast it gets on, and what it ends with."""

import time
from collections import deque
from collections.abc import Callable

from cli.client import Json
from cli.local import called
from cli.shell import PARTLY, Failure, Row, Shell
from cli.watch import interruptible, teller

PACE_S = 60.0  # the rate that is shown is that of so long, as far as it was watched
ENDS = ("stored", "flagged", "failed", "cancelled")


def watch_batch(
    shell: Shell,
    batch_id: str,
    timeout: float | None = None,
    on: str = "batch watch",
    hear: Callable[[Json], None] = lambda batch: None,
) -> Json:
    """The batch when it has ended; `hear` is told of it each time that it has changed.

    `on` is the command that goes on with it after Ctrl-C.
    """
    pace, known = Pace(), Json()
    hints = interruptible("batch", f"{on} {batch_id}", f"batch cancel {batch_id}")
    with hints, teller(shell, pace.describe, pace.position, news=tenths) as tell:
        for batch in shell.client.follow_batch(batch_id, timeout, shell.note):
            tell(batch)
            if (because := batch["paused_because"]) and because != known.get("paused_because"):
                shell.note(f"It paused by itself. {because} To let it go on: {called()} batch resume {batch_id}")
            if batch != known:
                hear(known := batch)
    return known


def outcome(batch: Json) -> Failure | None:
    """What to end with when not all pictures of a batch that has ended are there."""
    images = batch["images"]
    if batch["error"]:
        return Failure(f"Batch {batch['id']} cannot be rendered: {batch['error']['message']}")
    if batch["cancelled_at"]:
        return Failure(f"Batch {batch['id']} was cancelled.")
    if missing := images["total"] - images["stored"]:
        fates = f"{images['failed']} failed, {images['flagged']} were refused by the safety checker"
        code = PARTLY if images["stored"] else 1
        again = f" To draw again what failed: {called()} batch retry-failed {batch['id']}" if images["failed"] else ""
        return Failure(f"{missing} of {images['total']} pictures are missing: {fates}.{again}", code)
    return None


class Pace:
    """How a batch gets on, by what was seen of it in the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def describe(self, batch: Json, between: str = ", ") -> str:
        told = [f"{batch['state']}: {fates(batch) or 'no pictures yet'}"]
        rate = self._rate(batch)
        left = self._left(batch, rate)
        speed = [f"{rate:.0f} a minute" if rate >= 10 else f"{rate:.1f} a minute"] if rate else []
        if speed or left:
            told.append(", ".join(speed + ([f"{left} left"] if left else [])))
        return between.join(told)

    def position(self, batch: Json) -> Json:
        return {"description": self.describe(batch, "\n"), "total": expected(batch), "completed": ended(batch)}

    def _rate(self, batch: Json) -> float | None:
        """Images a minute; None before there is something to go by."""
        now, done = time.monotonic(), ended(batch)
        if batch["state"] not in ("expanding", "running"):  # it begins anew when it goes on
            self._seen.clear()
            return None
        self._seen.append((now, done))
        while now - self._seen[0][0] > PACE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return 60 * (done - before) / (now - since) if done > before else None

    @staticmethod
    def _left(batch: Json, rate: float | None) -> str | None:
        total = expected(batch)
        if rate and total is not None and batch["state"] == "running":
            return duration(60 * (total - ended(batch)) / rate)
        return duration(batch["eta_seconds"])


def fates(batch: Row) -> str:
    """How many images are in which state, where there are any."""
    waiting = batch["images"]["open"] - batch["running"]
    counts = {**batch["images"], "running": batch["running"], "waiting": waiting}
    return ", ".join(f"{counts[name]} {name}" for name in ("running", "waiting", *ENDS) if counts[name] > 0)


def duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{hours} h" if hours > 2 else f"{minutes} min" if minutes > 2 else f"{seconds:.0f} s"


def ended(batch: Json) -> int:
    return sum(batch["images"][name] for name in ENDS)


def expected(batch: Json) -> int | None:
    """How many images there will be: for sure, or if no line says so itself; None while nobody knows."""
    if batch["images"]["total"] is not None:
        return int(batch["images"]["total"])
    if not batch["jobs"] or batch["parent_id"]:
        return None
    return int(batch["prompts"] * batch["variants"] * batch["images_per_prompt"])


def tenths(batch: Json) -> tuple[str, int]:
    """What is worth a line: another state, or another tenth of the images."""
    total = expected(batch)
    return batch["state"], ended(batch) * 10 // total if total else 0
