"""Watching a job or a batch until it ends: progress on stderr, and its outcome as a Failure. Knows no command."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cli import sentence
from cli.client import Json
from cli.errors import INTERRUPTED, PARTLY, Failure, program_name
from cli.shell import Shell, format_range
from cli.terminal import Row, progress_bar

LINE_S = 10.0  # between two lines of a batch whose state stays the same
ENDED_IMAGES = ("stored", "flagged", "failed", "cancelled")


def watch_job(shell: Shell, job_id: str, timeout: float | None = None) -> Json:
    """The job when it has ended. Raises Failure after `timeout` seconds and on Ctrl-C; the job runs on."""
    hint = resume_hint("job", f"jobs watch {job_id}", f"jobs cancel {job_id}")
    with show_progress(shell, describe_job, job_bar, line_key=lambda job: job["state"]) as show, hint:
        for job in shell.client.follow_job(job_id, timeout):
            show(job)
    return job


def watch_batch(
    shell: Shell,
    batch_id: str,
    timeout: float | None = None,
    resume: str = "batch watch",
    on_change: Callable[[Json], None] = lambda batch: None,
) -> Json:
    """The batch when it has ended; `on_change` gets it in each new state, and every LINE_S between.

    Raises Failure after `timeout` seconds and on Ctrl-C, naming the command `resume`; the batch runs on.
    """
    last, is_due = Json(), lines_due(LINE_S)
    hint = resume_hint("batch", f"{resume} {batch_id}", f"batch cancel {batch_id}")
    with hint, show_progress(shell, describe_batch, batch_bar, lambda batch: batch["state"], LINE_S) as show:
        for batch in shell.client.follow_batch(batch_id, timeout, shell.print_message):
            show(batch)
            if (because := batch["paused_because"]) and because != last.get("paused_because"):
                shell.print_message(sentence("batch_paused", because=because, program=program_name(), batch=batch_id))
            last = batch
            if is_due(batch["state"]):
                on_change(batch)
    return last


@contextmanager
def resume_hint(noun: str, resume: str, cancel: str) -> Iterator[None]:
    """Turn Ctrl-C into a Failure that names the commands that resume the watch, and cancel what is watched."""
    try:
        yield
    except KeyboardInterrupt:
        message = sentence("watch_interrupted", noun=noun, program=program_name(), resume=resume, cancel=cancel)
        raise Failure(message, INTERRUPTED) from None


# Outcomes


def job_failure(job: Json) -> Failure | None:
    """The Failure of a job that has ended; None where all its images are stored."""
    missing = [image for image in job["images"] if image["state"] != "stored"]
    if not missing:
        return None
    if job["state"] == "cancelled":
        return Failure(sentence("job_cancelled", job=job["id"]))
    reasons = " ".join(sorted({failure_reason(image) for image in missing}))
    message = sentence("job_images_missing", missing=len(missing), total=len(job["images"]), reasons=reasons)
    return Failure(message, PARTLY if len(missing) < len(job["images"]) else 1)


def failure_reason(image: Json) -> str:
    error = image.get("error") or {}
    if image["state"] == "flagged" and not error:
        return sentence("image_flagged")
    return str(error.get("message") or sentence("image_not_stored", state=image["state"]))


def batch_failure(batch: Json) -> Failure | None:
    """The Failure of a batch that has ended; None where all its images are stored."""
    images = batch["images"]
    if batch["error"]:
        return Failure(sentence("batch_invalid", batch=batch["id"], reason=batch["error"]["message"]))
    if batch["cancelled_at"]:
        return Failure(sentence("batch_cancelled", batch=batch["id"]))
    missing = images["total"] - images["stored"]
    if not missing:
        return None
    message: str = sentence(
        "batch_images_missing",
        missing=missing,
        total=images["total"],
        failed=images["failed"],
        flagged=images["flagged"],
    )
    if images["failed"]:
        message += " " + sentence("batch_retry_hint", program=program_name(), batch=batch["id"])
    return Failure(message, PARTLY if images["stored"] else 1)


# Progress


@contextmanager
def show_progress(
    shell: Shell,
    describe: Callable[[Json], str],
    bar: Callable[[Json], Json],
    line_key: Callable[[Json], Any],
    every_s: float = float("inf"),
) -> Iterator[Callable[[Json], None]]:
    """Yield a function that shows a resource's progress: a bar on a terminal, else a line per new `line_key`, and one
    `every_s` seconds.
    """
    if shell.output_format == "quiet":
        yield lambda found: None
    elif sys.stderr.isatty():
        with progress_bar() as progress:
            task = progress.add_task("", total=None)
            yield lambda found: progress.update(task, **bar(found))
    else:
        is_due = lines_due(every_s)

        def print_line(found: Json) -> None:
            if is_due(line_key(found)):
                shell.print_message(f"{found['id']} {describe(found)}")

        yield print_line


def lines_due(every_s: float) -> Callable[[Any], bool]:
    """A function that says of a key whether a line is due: it is another one than the last time, or so long ago."""
    last: tuple[Any, float] | None = None

    def is_due(key: Any) -> bool:
        nonlocal last
        if last is not None and last[0] == key and time.monotonic() - last[1] < every_s:
            return False
        last = key, time.monotonic()
        return True

    return is_due


@contextmanager
def byte_progress(shell: Shell, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar by a number of bytes; shows nothing where stderr is no terminal."""
    if shell.output_format == "quiet" or not sys.stderr.isatty():
        yield lambda more: None
        return
    with progress_bar() as progress:
        task = progress.add_task(description, total=total)
        yield lambda more: progress.advance(task, more)


def describe_job(job: Json) -> str:
    if job["state"] == "queued" and (why := job.get("waiting_for")):
        return f"queued: {why.get('message') if isinstance(why, dict) else why}"
    return str(job["state"])


def job_bar(job: Json) -> Json:
    """The bar in images; the steps of the running ones count as a fraction."""
    progress = job.get("progress") or {}
    steps = progress.get("steps") or job["recipe"]["steps"]
    done = sum(image["state"] in ("stored", "flagged", "failed") for image in job["images"])
    fraction = (progress.get("step") or 0) / steps if job["state"] == "running" else 0
    return {"description": describe_job(job), "total": len(job["images"]), "completed": max(done, fraction)}


def describe_batch(batch: Json) -> str:
    """`running: 4 running, 2 stored, 120 a minute, 26 min left`"""
    return ", ".join(batch_parts(batch))


def batch_parts(batch: Json) -> list[str]:
    speed = []
    if batch["state"] in ("expanding", "running"):
        if rate := batch["images_per_minute"]:
            speed.append(f"{rate:.0f} a minute" if rate >= 10 else f"{rate:.1f} a minute")
        if left := format_range(batch["eta_seconds"], batch.get("eta_seconds_p90")):
            speed.append(f"{left} left")
        elif unknown := batch.get("eta_unknown"):
            speed.append(unknown["message"])
    parts = [f"{batch['state']}: {count_images(batch) or 'no pictures yet'}", ", ".join(speed)]
    return [part for part in parts if part]


def batch_bar(batch: Json) -> Json:
    return {
        "description": batch_parts(batch),
        "total": expected_images(batch),
        "completed": ended_images(batch),
    }


def count_images(batch: Row) -> str:
    """How many images are in which state: `4 running, 2 stored`."""
    waiting = batch["images"]["open"] - batch["running"]
    counts = {**batch["images"], "running": batch["running"], "waiting": waiting}
    return ", ".join(f"{counts[name]} {name}" for name in ("running", "waiting", *ENDED_IMAGES) if counts[name] > 0)


def ended_images(batch: Json) -> int:
    return sum(batch["images"][name] for name in ENDED_IMAGES)


def expected_images(batch: Json) -> int | None:
    """The total, estimated while the batch expands (a line may ask for another count); None while it is unknown."""
    if batch["images"]["total"] is not None:
        return int(batch["images"]["total"])
    if not batch["jobs"] or batch["parent_id"]:
        return None
    return int(batch["prompts"] * batch["variants"] * batch["images_per_prompt"])
