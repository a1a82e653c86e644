"""`python -m bench.harness.greedy URL MODEL FILE`: a tenant that submits as fast as it can, with the key GREEDY_KEY,
until SIGTERM. The file says what was answered, as JSON: how often each status to each kind of request, and how often
each limit has refused one. It is written at the end, and whenever something is answered for the first time.

A process of its own: its clients share no interpreter with those that are timed. Each thread sends one request after
the other, without a pause; only after a refusal it waits: REFUSED_S, or RECONNECT_S before a stream.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from common.enums import Tier

TIERS = tuple(Tier)
KINDS = {"job": 3, "batch": 2, "upload": 1, "stream": 17}  # of requests, and how many threads send them
REFUSED_S = 0.05
RECONNECT_S = 1.0  # of a stream: browsers wait longer
END_S = 3  # for requests in flight: a stream may go on
COUNT = 4  # images of a job
PROMPTS = 8  # of a batch in a request
LINES = 20  # of a file
SIZES = (128, 192)  # pixels: each has a lane of its own
STEPS = 20
Act = Callable[[], httpx.Response]


class Greedy:
    def __init__(self, url: str, key: str, model: str, file: Path) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, limits=limits)
        self._model = model
        self._file = file
        self._numbers = itertools.count()
        self._answers = Counter[str]()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._job: str | None = None

    def run(self) -> None:
        """Until `stop`."""
        acts = {"job": self.submit, "batch": self.submit_batch, "upload": self.upload, "stream": self.follow}
        threads = [
            threading.Thread(target=self._repeat, args=(kind, acts[kind]), daemon=True)
            for kind, number in KINDS.items()
            for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        self._stopping.wait()
        end = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
        with self._lock:
            self._write()

    def stop(self) -> None:
        self._stopping.set()

    def _repeat(self, kind: str, act: Act) -> None:
        while not self._stopping.is_set():
            try:
                answer = act()
            except httpx.HTTPError as error:
                self._count(f"{kind} {type(error).__name__}")
                continue
            self._count(f"{kind} {answer.status_code}")
            if answer.status_code >= 400:
                problem = answer.json()
                self._count(f"refused: {problem.get('limit') or problem['code']}")
                self._stopping.wait(RECONNECT_S if kind == "stream" else REFUSED_S)

    def _count(self, what: str) -> None:
        with self._lock:
            self._answers[what] += 1
            if self._answers[what] == 1:
                self._write()

    def _write(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._answers, sort_keys=True))
        part.replace(self._file)

    # One request each

    def submit(self) -> httpx.Response:
        number = next(self._numbers)
        body = {
            "prompt": f"红色的圆形，第{number}幅",
            "count": COUNT,
            "tier": TIERS[number % 3],
            **self._recipe(number),
        }
        answer = self._client.post("/v1/jobs", json=body)
        if answer.status_code == 201:
            self._job = answer.json()["id"]
        return answer

    def submit_batch(self) -> httpx.Response:
        number = next(self._numbers)
        return self._client.post("/v1/batches", json={"prompts": ["蓝色的三角形"] * PROMPTS, **self._plan(number)})

    def upload(self) -> httpx.Response:
        """A file, and a batch from it."""
        number = next(self._numbers)
        lines = "\n".join(f"黄色的星形，第{number}份，第{line}行" for line in range(LINES))
        answer = self._client.post("/v1/uploads", content=lines.encode(), headers={"Content-Type": "text/plain"})
        if answer.status_code != 201:
            return answer
        self._count("upload 201")
        return self._client.post("/v1/batches", json={"upload": answer.json()["id"], **self._plan(number)})

    def follow(self) -> httpx.Response:
        """The events of a recent job, to their end."""
        if self._job is None:
            answer = self._client.get("/v1/jobs", params={"limit": 1})
            self._job = next((job["id"] for job in answer.json().get("items", ())), None)
            return answer
        with self._client.stream("GET", f"/v1/jobs/{self._job}/events") as answer:
            if answer.status_code >= 400:
                answer.read()
                return answer
            for _ in answer.iter_raw():
                if self._stopping.is_set():
                    break
        return answer

    def _plan(self, number: int) -> dict[str, object]:
        return {"defaults": self._recipe(number), "tier": TIERS[number % 3]}

    def _recipe(self, number: int) -> dict[str, object]:
        size = SIZES[number % len(SIZES)]
        return {"model": self._model, "steps": STEPS, "width": size, "height": size}


def main(url: str, model: str, file: str) -> None:
    greedy = Greedy(url, os.environ["GREEDY_KEY"], model, Path(file))
    signal.signal(signal.SIGTERM, lambda *_: greedy.stop())
    greedy.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
