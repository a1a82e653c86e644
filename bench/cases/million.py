"""A batch of a million prompts with four images each, and the requests of other clients meanwhile. The file is
uploaded, submitted, checked and expanded by one control worker, listed, paused, resumed and cancelled; the images are
watched for a minute while they are settled. From the first byte to the last, other clients list jobs, read the batch
and submit jobs of their own; their p99 is shown, and the largest memory of the API's process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

import httpx
import psutil
from sqlalchemy import Engine, text

from bench.harness.farm import farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.db import connect, transaction
from common.queue.lanes import EXACT

ROUNDS = 1  # there is nothing to compare
PER_PROMPT = 4
SETTLING_S = 60
GOALS = (Goal("a million", measure="memory of the API, MB", at_most=300),)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    prompts = 20_000 if options.quick else 1_000_000
    with farm() as the_farm, the_farm.api(the_farm.settings) as url, the_farm.control(the_farm.settings):
        database = connect(the_farm.settings, pool=1)
        headers = {"Authorization": f"Bearer {the_farm.key(database)}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield {"a million": lambda: a_million(client, database, process_of(url), prompts)}
        database.dispose()


def a_million(client: httpx.Client, database: Engine, api: psutil.Process, prompts: int) -> Figures:
    figures: dict[str, float] = {}
    file = "\n".join(f"红色的圆形，第{place}幅" for place in range(prompts)).encode()
    others = Others(client, api)

    def timed(name: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        value = act()
        figures[name] = time.perf_counter() - began
        return value

    with others:
        headers = {"Content-Type": "text/plain"}
        upload = timed("upload, s", lambda: post(client, "/v1/uploads", content=file, headers=headers))
        draft = {"upload": upload["id"], "images_per_prompt": PER_PROMPT, "defaults": {"model": "mini-zh"}}
        batch = timed("submit, s", lambda: post(client, "/v1/batches", json=draft))
        path = f"/v1/batches/{batch['id']}"
        others.read_batch(path)
        timed("check, s", lambda: wait_until(lambda: client.get(path).json()["state"] != "checking", seconds=1800))
        timed("expand, s", lambda: wait_until(lambda: client.get(path).json()["state"] == "running", seconds=3600))
        timed("list its jobs, s", lambda: client.get("/v1/jobs", params={"batch": batch["id"]}).raise_for_status())
        timed("pause, s", lambda: post(client, f"{path}/pause"))
        timed("resume, s", lambda: post(client, f"{path}/resume"))
        timed("cancel, s", lambda: post(client, f"{path}/cancel"))
        settled, seconds = settle(database, prompts * PER_PROMPT)
    figures["images expanded a second"] = prompts * PER_PROMPT / figures["expand, s"]
    figures["images settled a second"] = settled / seconds
    return figures | others.figures()


def settle(database: Engine, images: int) -> tuple[int, float]:
    """The images that were settled, all of them or those of a minute, and the seconds."""
    began = time.perf_counter()
    while True:
        with transaction(database) as connection:
            settled = int(connection.execute(SETTLED).scalar_one())
        seconds = time.perf_counter() - began
        if settled == images or seconds > SETTLING_S:
            return settled, seconds
        time.sleep(0.05)


SETTLED = text(f"SELECT coalesce(sum(cancelled), 0) FROM {EXACT} AS lanes")


class Others:
    """The requests of other clients, timed in a thread of their own, and the memory of the API meanwhile."""

    def __init__(self, client: httpx.Client, api: psutil.Process) -> None:
        self._client = client
        self._api = api
        self._path = "/v1/batches"
        self._took: dict[str, list[float]] = {"list jobs": [], "read the batch": [], "submit a job": []}
        self._memory = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)

    def read_batch(self, path: str) -> None:
        self._path = path

    def figures(self) -> dict[str, float]:
        cuts = {name: quantiles(took, n=100) for name, took in self._took.items()}
        return {
            "memory of the API, MB": self._memory / 1e6,
            **{f"{name}, p50 ms": 1000 * median(took) for name, took in self._took.items()},
            **{f"{name}, p99 ms": 1000 * cut[98] for name, cut in cuts.items()},
        }

    def _run(self) -> None:
        job = {"prompt": "红色的圆形", "model": "mini-zh", "tier": "interactive"}
        acts: dict[str, Callable[[], httpx.Response]] = {
            "list jobs": lambda: self._client.get("/v1/jobs", params={"limit": 20}),
            "read the batch": lambda: self._client.get(self._path),
            "submit a job": lambda: self._client.post("/v1/jobs", json=job),
        }
        while not self._stopping.wait(0.1):
            for name, act in acts.items():
                began = time.perf_counter()
                act().raise_for_status()
                self._took[name].append(time.perf_counter() - began)
            self._memory = max(self._memory, self._api.memory_info().rss)


def post(client: httpx.Client, path: str, **request: Any) -> Any:
    return client.post(path, **request).raise_for_status().json()


def process_of(url: str) -> psutil.Process:
    port = url.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[-2:] == ["--port", port] and "-m" in command and command[command.index("-m") + 1] == "api":
            return process
    raise LookupError(url)
