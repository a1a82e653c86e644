"""Watching a job, or a batch, until it has ended: its progress on stderr, its outcome as an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cli.client import Json
from cli.local import called
from cli.shell import INTERRUPTED, PARTLY, Failure, Shell


def watch(shell: Shell, job_id: str, timeout: float | None = None) -> Json:
    """The job when it has ended. Raises Failure at a time-out, and when a person interrupts; the job goes on then."""
    hints = interruptible("job", f"jobs watch {job_id}", f"jobs cancel {job_id}")
    with teller(shell, describe, position, news=lambda job: job["state"]) as tell, hints:
        for job in shell.client.follow(job_id, timeout):
            tell(job)
    return job


@contextmanager
def interruptible(noun: str, on: str, end: str) -> Iterator[None]:
    """Ctrl-C ends the watch, not what is watched: these commands go on with it, or end it."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"To see on: {called()} {on} — or to end it: {called()} {end}"
        raise Failure(f"Interrupted; the {noun} goes on. {hint}", INTERRUPTED) from None


def outcome(job: Json) -> Failure | None:
    """What to end with when not all pictures of a job that has ended are there."""
    missing = [image for image in job["images"] if image["state"] != "stored"]
    if not missing:
        return None
    if job["state"] == "cancelled":
        return Failure(f"Job {job['id']} was cancelled.")
    reasons = {reason(image) for image in missing}
    code = PARTLY if len(missing) < len(job["images"]) else 1
    return Failure(f"{len(missing)} of {len(job['images'])} pictures are missing: {' '.join(sorted(reasons))}", code)


def reason(image: Json) -> str:
    if image["state"] == "flagged":
        return "The safety checker refused it."
    error = image.get("error") or {}
    return str(error.get("message") or f"It is {image['state']}.")


@contextmanager
def teller(
    shell: Shell, describe: Callable[[Json], str], position: Callable[[Json], Json], news: Callable[[Json], Any]
) -> Iterator[Callable[[Json], None]]:
    """What tells how something gets on: a bar on a terminal, else a line whenever `news` of it is new."""
    if shell.speaks == "quiet":
        yield lambda found: None
    elif sys.stderr.isatty():
        with bar() as progress:
            task = progress.add_task("", total=None)
            yield lambda found: progress.update(task, **position(found))
    else:
        told: list[Any] = []

        def line(found: Json) -> None:
            if news(found) not in told:
                told.append(news(found))
                shell.note(f"{found['id']} {describe(found)}")

        yield line


def bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def position(job: Json) -> Json:
    """Where the bar stands: denoising steps of all pictures of the job."""
    step = job.get("progress") or {}
    steps = step.get("steps") or job["recipe"]["steps"]
    done = sum(image["state"] in ("stored", "flagged", "failed") for image in job["images"])
    part = (step.get("step") or 0) / steps if job["state"] == "running" else 0
    return {"description": describe(job), "total": len(job["images"]), "completed": max(done, part)}


def describe(job: Json) -> str:
    if job["state"] == "queued" and (why := job.get("waiting_for")):
        return f"queued: {why.get('message') if isinstance(why, dict) else why}"
    return str(job["state"])
