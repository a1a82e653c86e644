"""A process of the farm with traps in it: `python -m tests.faults.sabotaged worker …` runs `python -m worker …`.

The product knows nothing of this. Its functions are wrapped before it starts: a wrapped function checks for a trap, a
file that the storm creates; the first process that finds the file removes it and dies there, or freezes, or fails.
STORM_SABOTAGE breaks the product permanently, to prove that the storm detects it. A name that the product no longer has
ends the process at its start (`test_traps.py` checks them all).
"""

import ctypes
import datetime
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.accounts import idempotency
from common.queue import leases

TRAPS = Path(os.environ["STORM_TRAPS"])
ME = os.environ["STORM_NAME"]
POISON = re.compile(r"#deadly\d*")  # in a prompt: the worker that renders it dies
HOUR = 3600.0
REPLACED: list[tuple[Any, str, Any]] = []  # owner, name and original of all that was replaced


def main(program: str, arguments: list[str]) -> int:
    die_with_the_storm()
    if ME.startswith(("stub", "mini")):
        shift_the_clock()
    set_traps()
    if sabotage := os.environ.get("STORM_SABOTAGE"):
        SABOTAGES[sabotage]()
    if program == "worker":
        from worker.__main__ import main as work

        return work(arguments)
    from api.__main__ import main as serve

    sys.argv = ["api", *arguments]
    serve()
    return 0


def die_with_the_storm() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit("the storm is over")


# Traps


def take(trap: str) -> bool:
    """Remove a trap. True in one process, if it was set."""
    try:
        os.rename(TRAPS / trap, TRAPS / "sprung" / f"{trap}.{ME}.{time.monotonic_ns()}")
    except FileNotFoundError:
        return False
    return True


def record(event: str) -> None:
    (TRAPS / "sprung" / f"{event}.{ME}.{time.monotonic_ns()}").touch()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def before(owner: Any, function: str, trap: str, spring: Callable[[], None] = die) -> None:
    def around(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if take(trap):
            spring()
        return original(*args, **named)

    wrap(owner, function, around)


def after(owner: Any, function: str, trap: str) -> None:
    def around(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        result = original(*args, **named)
        if take(trap):
            die()
        return result

    wrap(owner, function, around)


def wrap(owner: Any, function: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, function)
    replace(owner, function, lambda *args, **named: around(original, *args, **named))


def replace(owner: Any, name: str, value: Any) -> None:
    """Set an attribute of the product that must exist."""
    REPLACED.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def set_traps() -> None:
    from common.broker import Broker
    from common.queue import claim, jobs
    from common.storage import Storage

    wrap(Broker, "wake", dying_before_the_message)
    after(claim, "claim", "die_claiming")  # before its COMMIT
    before(leases, "start", "die_claimed")  # claimed, not started
    before(leases, "publish", "die_stored")  # bytes stored, not published
    before(leases, "publish", "freeze_stored", lambda: os.kill(os.getpid(), signal.SIGSTOP))
    after(leases, "publish", "die_publishing")  # before its COMMIT
    after(leases, "rescue", "die_rescuing")  # before its COMMIT
    after(jobs, "cancel", "die_cancelling")  # before its COMMIT
    wrap(Storage, "put", dying_in_the_middle)
    if ME.startswith(("stub", "mini")):
        from worker.pipelines import registry
        from worker.render.notifications import Notifications

        before(Notifications, "announce_soon", "die_published")  # after the COMMIT of a publish
        wrap(registry, "load", treacherous)


def dying_before_the_message(wake: Callable[..., Any], *args: Any, job_id: Any = None, **named: Any) -> Any:
    if job_id and take("die_committed"):
        die()
    return wake(*args, job_id=job_id, **named)


def dying_in_the_middle(put: Callable[..., Any], storage: Any, key: str, data: bytes, media_type: str) -> Any:
    return put(storage, key, Fatal(data) if take("die_uploading") else data, media_type)


class Fatal(io.BytesIO):
    """A body that kills who sends more than half of it; reading it for its checksum is harmless."""

    def read(self, size: int | None = -1, /) -> bytes:
        if is_being_sent() and self.tell() >= len(self.getbuffer()) // 2:
            die()
        return super().read(min(size or 4096, 4096) if size and size > 0 else -1)


def is_being_sent() -> bool:
    frame = sys._getframe(2)
    while frame.f_back and not frame.f_code.co_filename.endswith("common/storage.py"):
        if frame.f_code.co_filename.endswith(("http/client.py", "urllib3/util/request.py")):
            return True
        frame = frame.f_back
    return False


def treacherous(load: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """A pipeline that kills its process at a poisonous prompt or in the middle of any other, or runs out of memory."""
    from common.errors import OutOfMemory

    pipeline = load(*args, **named)

    def with_traps(
        generate: Callable[..., Any], requests: Any, on_step: Callable[[int, int], None], *rest: Any, **more: Any
    ) -> Any:
        if take("out_of_memory"):
            raise OutOfMemory("The storm took the memory away.")
        poisons = [poison[0] for request in requests if (poison := POISON.search(request.recipe.prompt))]

        def on_step_with_traps(step: int, steps: int) -> None:
            on_step(step, steps)
            for poison in poisons:
                record(f"poisoned by {poison}")
                die()
            if take("die_rendering"):
                die()

        return generate(requests, on_step_with_traps, *rest, **more)

    wrap(pipeline, "generate", with_traps)
    return pipeline


# The clock


def shift_the_clock() -> None:
    """While the file `clock.NAME` exists, the clock of this process is an hour ahead; its monotonic clock is not."""
    import psycopg  # noqa: F401 (first: compiled code wants the class as it was)

    real_time, real_ns, real = time.time, time.time_ns, datetime.datetime
    flag = str(TRAPS / f"clock.{ME}")

    def shift() -> float:
        return HOUR if os.path.exists(flag) else 0.0

    class Shifted(real):  # type: ignore[valid-type, misc]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real.now(tz) + datetime.timedelta(seconds=shift())

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=shift())

    time.time = lambda: real_time() + shift()
    time.time_ns = lambda: real_ns() + int(shift() * 1e9)
    datetime.datetime = Shifted  # type: ignore[misc]


# Sabotage


def without_fence() -> None:
    """Any lease may publish any image that is being rendered."""
    replace(leases, "PUBLISH", changed(leases.PUBLISH, "AND images.lease_id = :lease ", ""))


def without_cancel() -> None:
    """Ends the job, and lets its images go on."""
    from common.queue import jobs

    replace(jobs, "CANCEL", changed(jobs.CANCEL, "AND images.state IN ('queued', 'running')", "AND false"))


def changed(statement: Any, words: str, others: str) -> Any:
    from sqlalchemy import text

    assert words in statement.text, "this is written differently now"
    return text(statement.text.replace(words, others))


def without_keys() -> None:
    """Treats every Idempotency-Key as new."""
    replace(idempotency, "claim_key", lambda *_: None)


def without_heartbeat() -> None:
    """Reports that leases are renewed, and renews none."""
    wanted = leases.WANTED

    def renew(connection: Any, lease_ids: Any, lease_s: float) -> Any:
        rows = connection.execute(wanted, {"leases": list(lease_ids)}).all()
        return {lease: frozenset(row.image_id for row in rows if row.lease_id == lease) for lease in lease_ids}

    replace(leases, "renew", renew)


def without_order() -> None:
    """Reports that bytes are stored, and stores them after they were published."""
    from common.storage import Storage

    put = Storage.put

    def put_later(storage: Any, *args: Any) -> None:
        threading.Timer(2.0, lambda: put(storage, *args)).start()

    replace(Storage, "put", put_later)


def without_count() -> None:
    """Enters a microbatch in the ledger of usage as if it were one image."""
    replace(leases, "PUBLISH", changed(leases.PUBLISH, "jobs.tier, count(*),", "jobs.tier, 1,"))


def without_deletion() -> None:
    """Deletes the rows of what is deleted, and forgets its bytes."""
    from common.deletion import objects

    replace(objects, "add", lambda *_: None)


SABOTAGES: dict[str, Callable[[], None]] = {
    "deletion": without_deletion,
    "fence": without_fence,
    "cancel": without_cancel,
    "keys": without_keys,
    "heartbeat": without_heartbeat,
    "order": without_order,
    "sweep": lambda: None,  # HUAFANG_SWEEP=false does it
    "usage": without_count,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
