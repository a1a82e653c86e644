"""`huafang doctor --drill`: a worker of the local farm is killed in the middle of a job, and nothing is lost.

    submit ──► running ──► kill -9 ──► its lease runs out ──► rendered again ──► whole ──► as many workers as before

Knows no command.
"""

import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping

from cli.client import Json
from cli.local import embedded
from cli.shell import TIMED_OUT, Failure, Shell
from cli.watch import outcome, watch

PROMPT = "红色的圆形"
COUNTS = (1, 8, 64)  # of pictures: more, where all were done before the blow
PATIENCE_S = 300


def kill_a_worker(shell: Shell, pids: Mapping[str, int | None]) -> Iterator[str]:
    """What was done and seen, sentence by sentence. Raises Failure when something is lost or does not come back.

    `pids` of the processes of the local farm, by name: a worker there has the name of its process.
    """
    for count in COUNTS:
        known = {worker["id"] for worker in workers(shell)}
        job = begun(shell, count)
        name = job["worker"]
        pid = pids.get(name)
        if pid is None:
            raise Failure(f"{name} renders job {job['id']}: it is no process of the local farm, so none was killed.")
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        yield f"{name} (process {pid}) was killed while it rendered job {job['id']}"
        job = watch(shell, job["id"], PATIENCE_S)
        if missing := outcome(job):
            raise missing
        yield f"the job {job['state']} {time.monotonic() - killed:.1f} s later, with {job['worker']}"
        for image in job["images"]:
            shell.client.download(image)  # and its sha256 compared
        yield f"all its pictures ({len(job['images'])}) are there, each with the sha256 of its row"
        pids = {**pids, name: back(shell, name, pid, known)}
        yield f"{name} is back as process {pids[name]}"
        again = [image["attempts"] for image in job["images"] if image["attempts"] > 1]
        if again:
            yield f"nothing was lost: {len(again)} of the pictures took {max(again)} attempts"
            return
    raise Failure("Every job was done before its worker was killed, so nothing is shown; try again.")


def begun(shell: Shell, count: int) -> Json:
    """A job that is being rendered now. Asks without a pause: it may not last long."""
    (model,) = [model for model in shell.client.get("/v1/models")["items"] if model["is_default"]]
    limits = model["limits"]
    job = shell.client.submit(
        {"prompt": PROMPT, "steps": limits["max_steps"], "count": min(count, limits["max_count"])}
    )
    deadline = time.monotonic() + PATIENCE_S
    while job["worker"] is None:
        if time.monotonic() > deadline:
            raise Failure(f"No worker began with job {job['id']} in {PATIENCE_S} s.", TIMED_OUT)
        job = shell.client.get(f"/v1/jobs/{job['id']}")
    return job


def back(shell: Shell, name: str, killed: int, known: Collection[str]) -> int:
    """The process that the supervisor started in place of the killed one, once it takes work."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        new = [worker for worker in workers(shell) if worker["id"] not in known and worker["name"] == name]
        if any(worker["state"] == "ready" for worker in new):
            (pid,) = [process["pid"] for process in embedded("status")["processes"] if process["name"] == name]
            if pid not in (None, killed):
                return int(pid)
        time.sleep(0.2)
    raise Failure(f"{name} did not come back in {PATIENCE_S} s; see its log.", TIMED_OUT)


def workers(shell: Shell) -> list[Json]:
    found: list[Json] = shell.client.get("/v1/workers")["items"]
    return found
