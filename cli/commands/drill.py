"""`huafang doctor --drill`: kill a worker of the local farm in the middle of a job, and check that nothing is lost.

    submit ──► running ──► SIGKILL ──► the lease expires ──► rendered again ──► complete ──► the worker is back

Knows no command.
"""

import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping

from cli import sentence
from cli.client import Json
from cli.errors import TIMED_OUT, Failure
from cli.local import run_embedded
from cli.shell import Shell
from cli.watch import job_failure, watch_job

PROMPT = "红色的圆形"
COUNTS = (1, 8, 64)  # pictures of the job: more, where the job ended before the kill
TIMEOUT_S = 300


def kill_worker(shell: Shell, pids: Mapping[str, int | None]) -> Iterator[str]:
    """Yield a sentence per step. Raises Failure where an image is lost or the worker does not come back.

    `pids`: the processes of the local farm by name, which is the name of its worker too.
    """
    for count in COUNTS:
        known = {worker["id"] for worker in workers(shell)}
        job = start_job(shell, count)
        name = job["worker"]
        pid = pids.get(name)
        if pid is None:
            raise Failure(sentence("drill_foreign_worker", worker=name, job=job["id"]))
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        yield sentence("drill_killed", worker=name, pid=pid, job=job["id"])
        job = watch_job(shell, job["id"], TIMEOUT_S)
        if failure := job_failure(job):
            raise failure
        seconds = time.monotonic() - killed
        yield sentence("drill_job_ended", state=job["state"], seconds=seconds, worker=job["worker"])
        for image in job["images"]:
            shell.client.download(image)  # compares its sha256
        yield sentence("drill_images_complete", count=len(job["images"]))
        pids = {**pids, name: wait_for_restart(shell, name, pid, known)}
        yield sentence("drill_worker_back", worker=name, pid=pids[name])
        again = [image["attempts"] for image in job["images"] if image["attempts"] > 1]
        if again:
            yield sentence("drill_passed", count=len(again), attempts=max(again))
            return
    raise Failure(sentence("drill_inconclusive"))


def start_job(shell: Shell, count: int) -> Json:
    """A new job that a worker renders. Polls without a pause: the job may be short."""
    (model,) = [model for model in shell.client.get("/v1/models")["items"] if model["is_default"]]
    limits = model["limits"]
    job = shell.client.submit(
        {"prompt": PROMPT, "steps": limits["max_steps"], "count": min(count, limits["max_count"])}
    )
    deadline = time.monotonic() + TIMEOUT_S
    while job["worker"] is None:
        if time.monotonic() > deadline:
            raise Failure(sentence("drill_not_started", job=job["id"], seconds=TIMEOUT_S), TIMED_OUT)
        job = shell.client.get(f"/v1/jobs/{job['id']}")
    return job


def wait_for_restart(shell: Shell, name: str, killed: int, known: Collection[str]) -> int:
    """The id of the process that the supervisor started in place of the killed one, once its worker is ready."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        new = [worker for worker in workers(shell) if worker["id"] not in known and worker["name"] == name]
        if any(worker["state"] == "ready" for worker in new):
            (pid,) = [process["pid"] for process in run_embedded("status")["processes"] if process["name"] == name]
            if pid not in (None, killed):
                return int(pid)
        time.sleep(0.2)
    raise Failure(sentence("drill_no_restart", worker=name, seconds=TIMEOUT_S), TIMED_OUT)


def workers(shell: Shell) -> list[Json]:
    found: list[Json] = shell.client.get("/v1/workers")["items"]
    return found
