"""A farm whose processes are of two releases, a load balancer before its APIs, and clients who try nothing twice."""

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.faults.farm import free_ports
from tests.support.workers import until
from tests.upgrade.releases import environment_of

LOOK = {"model": "zh-v0", "width": 64, "height": 64, "steps": 2}
PAUSE_S = 0.15  # of a client, between two jobs
READY_S = 0.3  # between two looks of the balancer at /readyz
CLIENTS = 2
BATCH_EVERY = 20  # jobs of a client
PROMPTS = 8  # of a batch
LOOKING = httpx.Client(timeout=30, trust_env=False)


@dataclass
class Process:
    name: str
    release: Path
    arguments: list[str]
    variables: dict[str, str]
    log: Path
    child: subprocess.Popen[bytes] = field(init=False)
    exit_code: int = field(default=0, init=False)  # that is expected

    def __post_init__(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                cwd=self.release,
                env=environment_of(self.release, self.variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def drain(self) -> None:
        """What a supervisor does: SIGTERM, and the process ends by itself."""
        self.child.send_signal(signal.SIGTERM)
        assert self.child.wait(60) == self.exit_code, self.end_of_log()

    def end_of_log(self) -> str:
        return f"{self.name}: {self.log.read_text()[-2000:]}"

    def kill(self) -> None:
        self.exit_code = -signal.SIGKILL
        self.child.kill()
        self.child.wait(20)


class Replica(Process):
    """An API, and how many requests it has to answer."""

    def __post_init__(self) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.arguments = ["api", "--port", str(port)]
        self.open_requests = 0
        self.exit_code = -signal.SIGTERM  # uvicorn raises it again, once it has shut down
        super().__post_init__()

    def readiness(self) -> tuple[int, str]:
        answer = LOOKING.get(f"{self.url}/readyz")
        return answer.status_code, answer.text

    def is_ready(self) -> bool:
        assert self.child.poll() is None, self.end_of_log()
        try:
            return self.readiness()[0] == 200
        except httpx.TransportError:
            return False


class Balancer:
    """Sends each request to the next of its replicas, and looks at their /readyz all the time."""

    def __init__(self) -> None:
        self.replicas: list[Replica] = []
        self.refused: list[str] = []
        self.not_ready: list[str] = []
        self.answers = self.looks = 0
        self._changing = threading.Condition()
        self._turn = itertools.count()

    def join(self, replica: Replica) -> None:
        with self._changing:
            self.replicas.append(replica)

    def leave(self, replica: Replica) -> None:
        """Nothing more is sent to it; it has answered what was."""
        with self._changing:
            self.replicas.remove(replica)
            assert self._changing.wait_for(lambda: not replica.open_requests, 60)

    def send(self, client: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer; {} for a refusal, which is recorded."""
        with self._changing:
            replica = self.replicas[next(self._turn) % len(self.replicas)]
            replica.open_requests += 1
        try:
            answer = client.request(method, replica.url + path, **options)
            self.answers += 1
            if answer.status_code < 300:
                found: dict[str, Any] = answer.json()
                return found
            self.refused.append(f"{replica.name}: {method} {path}: {answer.status_code} {answer.text[:300]}")
        except httpx.TransportError as error:
            self.refused.append(f"{replica.name}: {method} {path}: {error!r}")
        finally:
            with self._changing:
                replica.open_requests -= 1
                self._changing.notify_all()
        return {}

    def watch(self, stopping: threading.Event) -> None:
        while not stopping.wait(READY_S):
            with self._changing:
                watched = list(self.replicas)
                for replica in watched:
                    replica.open_requests += 1
            for replica in watched:
                status, text = replica.readiness()
                self.looks += 1
                if status != 200:
                    self.not_ready.append(f"{replica.name}: {status} {text[:300]}")
                with self._changing:
                    replica.open_requests -= 1
                    self._changing.notify_all()


class Load:
    """Clients who submit jobs and batches and look at them, one request after the other."""

    def __init__(self, balancer: Balancer, secret: str) -> None:
        self.jobs: list[str] = []
        self.batches: list[str] = []
        self._balancer = balancer
        self._headers = {"Authorization": f"Bearer {secret}"}

    def run(self, stopping: threading.Event) -> None:
        with httpx.Client(headers=self._headers, timeout=60, trust_env=False) as client:
            for number in itertools.count(1):
                if stopping.wait(PAUSE_S):
                    return
                body = LOOK | {"prompt": f"红色的圆形 {number}", "count": 1 + number % 2}
                if job := self._balancer.send(client, "POST", "/v1/jobs", json=body):
                    self.jobs.append(job["id"])
                    self._balancer.send(client, "GET", f"/v1/jobs/{self.jobs[-number % len(self.jobs)]}")
                if number % BATCH_EVERY == 1:
                    self._submit_batch(client, number)

    def _submit_batch(self, client: httpx.Client, number: int) -> None:
        body = {"prompts": [f"第{number}批 {n}" for n in range(PROMPTS)], "defaults": LOOK}
        if batch := self._balancer.send(client, "POST", "/v1/batches", json=body):
            self.batches.append(batch["id"])
        self._balancer.send(client, "GET", "/v1/jobs?limit=10")
        self._balancer.send(client, "GET", "/v1/batches")
        self._balancer.send(client, "GET", "/v1/workers")


@contextmanager
def under_load(balancer: Balancer, load: Load) -> Iterator[None]:
    stopping = threading.Event()
    works = [*(load.run for _ in range(CLIENTS)), balancer.watch]
    threads = [threading.Thread(target=work, args=(stopping,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads)


def until_busy(load: Load, jobs: int = 6) -> None:
    """Wait until the load has submitted some more jobs."""
    before, deadline = len(load.jobs), time.monotonic() + 90
    until(lambda: len(load.jobs) >= before + jobs or time.monotonic() > deadline)
    assert len(load.jobs) >= before + jobs, "the load has stopped"
