"""Watching a job until it has ended: its progress on stderr, its outcome as an exit code."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cli.client import Json
from cli.local import called
from cli.shell import INTERRUPTED, PARTLY, Failure, Shell


def watch(shell: Shell, job_id: str, timeout: float | None = None) -> Json:
    """The job when it has ended. Raises Failure at a time-out, and when a person interrupts; the job goes on then."""
    job: Json = {}
    try:
        with teller(shell) as tell:
            for job in shell.client.follow(job_id, timeout):
                tell(job)
    except KeyboardInterrupt:
        raise Failure(
            f"Interrupted; the job goes on. Watch it: {called()} jobs watch {job_id}"
            f" — or end it: {called()} jobs cancel {job_id}",
            INTERRUPTED,
        ) from None
    return job


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
def teller(shell: Shell) -> Iterator[Callable[[Json], None]]:
    """What tells how a job gets on: a bar on a terminal, else a line for each new state."""
    if shell.speaks == "quiet":
        yield lambda job: None
    elif sys.stderr.isatty():
        with bar() as progress:
            task = progress.add_task("", total=None)
            yield lambda job: progress.update(task, **position(job))
    else:
        told: list[str] = []

        def line(job: Json) -> None:
            if job["state"] not in told:
                told.append(job["state"])
                shell.note(f"{job['id']} {describe(job)}")

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
