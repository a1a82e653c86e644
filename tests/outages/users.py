"""A few users of a small farm: some submit, some watch, some look at pages and images. Whatever fails, they go on."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.faults.farm import TENANTS, make_home
from tests.outages.farm import SmallFarm

BATCH = {"prompts": ["红色的圆形", "蓝色的方形"], "defaults": {"model": "zh-v0", "width": 64, "height": 64, "steps": 2}}
JOB = {"prompt": "红色的圆形", **BATCH["defaults"], "count": 2}  # type: ignore[dict-item]


class Users:
    def __init__(self, farm: SmallFarm) -> None:
        self.counts: Counter[str] = Counter()  # what was answered, by status
        self._unseen = {"thumbnail", "dataset"}  # what none of them has got yet
        self._url, self._secret = farm.urls[0], farm.keys[TENANTS[0]]
        self._job = ""
        self._stopping = threading.Event()
        habits: list[tuple[Callable[[httpx.Client], object], float]] = [
            (self._submit, 0.4),
            (self._submit_batch, 5),
            (self._look, 0.5),
            *[(self._watch, 0.5)] * 2,
            *[(self._watch_page, 0.5)] * 2,
        ]
        self._threads = [threading.Thread(target=self._live, args=habit, daemon=True) for habit in habits]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wait_until_served(self, seconds: float = 240) -> None:
        """Until everything that they want has been made once, and what is loaded for it."""
        deadline = time.monotonic() + seconds
        while self._unseen:
            assert time.monotonic() < deadline, f"nobody got a {' or a '.join(self._unseen)}: {dict(self.counts)}"
            time.sleep(0.2)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _live(self, habit: Callable[[httpx.Client], object], pause_s: float) -> None:
        headers = {"Authorization": f"Bearer {self._secret}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=10, trust_env=False) as client:
            while not self._stopping.wait(pause_s):
                with suppress(httpx.TransportError):
                    habit(client)

    def _submit(self, client: httpx.Client) -> None:
        most = {"count": 8} if not self._job else {}  # once, so that every pool of threads is full from the beginning
        answer = self._count(client.post("/v1/jobs", json=JOB | most))
        if answer.status_code == 201:
            self._job = answer.json()["id"]

    def _submit_batch(self, client: httpx.Client) -> None:
        answer = self._count(client.post("/v1/batches", json=BATCH))
        if answer.status_code == 201:
            self._count(client.post("/v1/datasets", json={"batch": answer.json()["id"]}))

    def _look(self, client: httpx.Client) -> None:
        self._count(client.get("/readyz"))
        if not self._job:
            return
        job = self._count(client.get(f"/v1/jobs/{self._job}")).json()
        stored = [image for image in job.get("images", ()) if image["state"] == "stored"]
        for image in stored[:1]:
            if self._count(client.get(f"/v1/images/{image['id']}/thumbnail")).status_code == 200:
                self._unseen.discard("thumbnail")
        datasets = self._count(client.get("/v1/datasets?limit=5")).json()
        if any(dataset["state"] == "ready" for dataset in datasets.get("items", ())):
            self._unseen.discard("dataset")

    def _watch(self, client: httpx.Client) -> None:
        if self._job:
            self._read(client, f"/v1/jobs/{self._job}/events", 5)

    def _watch_page(self, client: httpx.Client) -> None:
        if not client.cookies:
            self._count(client.post("/dashboard/sign-in", data={"key": self._secret}, headers={"Origin": self._url}))
        self._read(client, "/dashboard/live/", 5)

    def _read(self, client: httpx.Client, path: str, seconds: float) -> None:
        """A stream, for so long or until it ends."""
        until = time.monotonic() + seconds
        with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
            self.counts[f"stream {answer.status_code}"] += 1
            for _ in answer.iter_bytes():
                if time.monotonic() > until or self._stopping.is_set():
                    return

    def _count(self, answer: httpx.Response) -> httpx.Response:
        self.counts[str(answer.status_code)] += 1
        return answer


@contextmanager
def used_farm(parent: Path, warm_up_s: float) -> Iterator[tuple[SmallFarm, Users]]:
    """A farm that has served its users for so long."""
    farm = SmallFarm(make_home(parent))
    try:
        farm.start()
        users = Users(farm)
        users.start()
        users.wait_until_served()
        time.sleep(warm_up_s)
        yield farm, users
        users.stop()
    finally:
        farm.stop()
