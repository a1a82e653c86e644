"""Who uses the farm in the storm: tenants that submit, look and cancel over HTTP, and remember what they were told.

Every 201 is remembered with its key; every end that was seen must still be the end when it is looked at again. What
contradicts itself is written down here, and judged in `promises`.
"""

import asyncio
import itertools
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from common.enums import TERMINAL_JOB, Tier
from tests.faults.farm import TENANTS, Farm

T = TypeVar("T")
Json = dict[str, Any]

POISON, OUT_OF_MEMORY = "#deadly", "#oom"  # in a prompt: what `sabotaged` dies of, what the stub has no memory for

PROMPTS = ("红色的圆形", "蓝色的三角形", "黄色的星形", "绿色的房子", "白色的月亮", "紫色的心形")
REQUEST_S = 10.0
BATCH_EVERY = 40  # jobs
CANCELLED_SHARE, KEYLESS_SHARE, MISMATCH_SHARE, SLOW_SHARE, DELETED_SHARE = 0.06, 0.05, 0.03, 0.04, 0.12
REUSED_SHARE, REUSED_SEEDS = 0.2, 3  # few seeds, so that the same is asked for again and again


@dataclass
class Accepted:
    """One job that somebody was told of with a 201."""

    id: str
    tenant: str
    kind: str
    prompt: str
    count: int
    at: float


@dataclass
class AcceptedBatch:
    """One batch that somebody was told of with a 201."""

    prompts: int
    per_prompt: int
    stored: int | None = None  # images, when its cancellation was answered


@dataclass
class Seen:
    """How a job had ended when it was first seen so."""

    at: float  # monotonic, when the answer had come
    state: str
    images: list[tuple[str, str, str | None]]


@dataclass
class Witness:
    jobs: dict[str, Accepted] = field(default_factory=dict)
    batches: dict[str, AcceptedBatch] = field(default_factory=dict)
    keys: defaultdict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    ended: dict[str, Seen] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)  # asked for
    deleted: dict[str, float] = field(default_factory=dict)  # when the deletion was answered, monotonic
    contradictions: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # by promise
    counts: Counter[str] = field(default_factory=Counter)
    used: dict[str, tuple[float, int]] = field(default_factory=dict)  # by tenant: when the answer had come, images

    def answered(self, job: Json, tenant: str, key: str | None, kind: str) -> None:
        accepted = Accepted(job["id"], tenant, kind, job["recipe"]["prompt"], len(job["images"]), time.time())
        self.jobs.setdefault(job["id"], accepted)
        self._told_under(key, tenant, job["id"])

    def told_of_batch(self, batch: Json, tenant: str, key: str, prompts: int) -> None:
        self.batches.setdefault(batch["id"], AcceptedBatch(prompts, batch["images_per_prompt"]))
        self._told_under(key, tenant, batch["id"])

    def _told_under(self, key: str | None, tenant: str, id: str) -> None:
        if key:
            ids = self.keys[(tenant, key)]
            ids.add(id)
            if len(ids) > 1:
                self.contradictions["P8"].append(f"key {key} has made {sorted(ids)}")

    def saw(self, job: Json, asked_at: float) -> None:
        """Compare with what was seen before; `asked_at` is when the question left."""
        if asked_at > self.deleted.get(job["id"], float("inf")) or asked_at > self.deleted.get(
            job.get("batch_id") or "", float("inf")
        ):
            self.contradictions["P14"].append(f"job {job['id']} was deleted, or its batch was, and is shown")
        images = [(image["id"], image["state"], image["sha256"]) for image in job["images"]]
        seen = self.ended.get(job["id"])
        if seen is None:
            if job["state"] in TERMINAL_JOB:
                self.ended[job["id"]] = Seen(time.monotonic(), job["state"], images)
        elif asked_at > seen.at and (job["state"], images) != (seen.state, seen.images):
            promise = "P7" if seen.state == "cancelled" else "P5"
            self.contradictions[promise].append(f"job {job['id']} was {seen.state}, then {job['state']}: {images}")

    def told_usage(self, tenant: str, images: int, asked_at: float) -> None:
        """What a tenant has used never becomes less."""
        answered_at, before = self.used.get(tenant, (0.0, 0))
        if asked_at > answered_at and images < before:
            self.contradictions["USE"].append(f"{tenant} had used {before} images, then {images}")
        if images >= before:
            self.used[tenant] = time.monotonic(), images


def due_s(submitted: int, jobs: int, seconds: float) -> float:
    """After how many seconds the next job is submitted: `jobs` of them in `seconds`, then one a second."""
    later = max(0, submitted - jobs)
    return (submitted - later) * seconds / max(jobs, 1) + later


class Load:
    """`jobs` submissions in `seconds`, then one a second until it is stopped, so that no fault meets an idle farm."""

    def __init__(self, farm: Farm, witness: Witness, jobs: int, seconds: float, seed: int) -> None:
        self.farm = farm
        self.witness = witness
        self.submitted = 0
        self._jobs, self._seconds = jobs, seconds
        self._random = random.Random(f"{seed}:load")
        self._stopping = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._pending: set[asyncio.Task[Any]] = set()
        self._drivers: Future[Any] | None = None
        self._poisons = itertools.count(1)

    def start(self) -> None:
        self._thread.start()
        self._drivers = asyncio.run_coroutine_threadsafe(self._drive(), self._loop)

    def stop_submitting(self) -> None:
        self._stopping.set()

    def finish(self, seconds: float) -> int:
        """Wait for the answers that are still out; how many never came."""
        self.stop_submitting()
        self._drivers.result(seconds)
        return self.do(self._wait_for_pending(seconds), seconds + 5)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def do(self, what: Coroutine[Any, Any, T], seconds: float = 60) -> T:
        """Have something done in the load's thread, from any other."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(seconds)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _drive(self) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(timeout=REQUEST_S, limits=limits, trust_env=False)
        await asyncio.gather(self._submit_all(), self._look_around())

    async def _submit_all(self) -> None:
        began = time.monotonic()
        while not self._stopping.is_set():
            pause = began + due_s(self.submitted, self._jobs, self._seconds) - time.monotonic()
            if pause > 0:
                await asyncio.sleep(min(pause, 0.5))
                if pause > 0.5:
                    continue
            self.submitted += 1
            self._spawn(self._one_job())
            if self.submitted % BATCH_EVERY == 1:
                self._spawn(self._one_batch())

    def _spawn(self, what: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(what)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _wait_for_pending(self, seconds: float) -> int:
        if self._pending:
            await asyncio.wait(self._pending, timeout=seconds)
        return len(self._pending)

    # What people do

    async def _one_job(self) -> None:
        chance = self._random.random
        body, tenant, kind = self.recipe(), self._random.choice(TENANTS), "plain"
        is_cancelled, pause, mismatch = chance() < CANCELLED_SHARE, 2 * chance() ** 2, chance() < MISMATCH_SHARE
        is_deleted = chance() < DELETED_SHARE
        if chance() < SLOW_SHARE:
            kind, body = "slow", {**body, "model": "zh-v0", "steps": 150, "count": 1}  # longer than a lease
        elif chance() < REUSED_SHARE:
            body = {**body, "reuse": True, "seed": self._random.randrange(REUSED_SEEDS)}
        key = None if chance() < KEYLESS_SHARE else str(uuid4())
        job = await self.submit(body, tenant, kind, key)
        if job and mismatch and key:
            await self._mismatch(body, tenant, key)
        if job and is_cancelled:
            await asyncio.sleep(pause)
            await self.cancel(job["id"], tenant)
        if job and is_deleted:
            await (self._until_ended(job["id"], tenant) if pause < 0.7 else asyncio.sleep(pause))
            await self.delete("jobs", job["id"], tenant)

    async def _one_batch(self) -> None:
        """Some are paused for a moment, some cancelled; a change is tried again until it is answered."""
        chance, tenant, key = self._random.random, self._random.choice(TENANTS), str(uuid4())
        fate, pause = chance(), 6 * chance() ** 2
        look = self.recipe(count=1)
        del look["prompt"], look["count"]
        prompts = [f"{self._random.choice(PROMPTS)} {n}" for n in range(20)]
        body = {"prompts": prompts, "images_per_prompt": 2, "tier": look.pop("tier"), "defaults": look}
        if chance() < REUSED_SHARE:
            body |= {"reuse": True, "seed": self._random.randrange(REUSED_SEEDS)}
        answer = await self._request("POST", "/v1/batches", tenant, {"Idempotency-Key": key}, body)
        if answer is None or answer.status_code != 201:
            self.witness.contradictions["P1"].append(f"POST /v1/batches: {answer and answer.text[:300]}")
            return
        batch_id = answer.json()["id"]
        self.witness.told_of_batch(answer.json(), tenant, key, len(prompts))
        if fate < 0.3:
            await asyncio.sleep(pause)
            await self._change_batch(batch_id, tenant, "pause")
            await asyncio.sleep(pause)
            await self._change_batch(batch_id, tenant, "resume")
        elif fate < 0.6:
            await asyncio.sleep(pause)
            if batch := await self._change_batch(batch_id, tenant, "cancel"):
                self.witness.batches[batch_id].stored = batch["images"]["stored"]
                if (batch["state"], batch["running"]) != ("ended", 0):
                    self.witness.contradictions["P7"].append(f"batch {batch_id} is cancelled and {batch}")
        elif fate < 0.85:
            await asyncio.sleep(3 * pause)
            await self.delete("batches", batch_id, tenant)

    async def _change_batch(self, batch_id: str, tenant: str, verb: str) -> Json | None:
        """None when it had ended before."""
        answer = await self._request("POST", f"/v1/batches/{batch_id}/{verb}", tenant)
        if answer is not None and answer.status_code == 200:
            self.witness.counts[f"batches to {verb}"] += 1
            batch: Json = answer.json()
            return batch
        if answer is None or answer.status_code != 409:
            self.witness.contradictions["P1"].append(f"{verb} batch {batch_id}: {answer and answer.text[:300]}")
        return None

    def recipe(self, **fields: Any) -> Json:
        choose = self._random.choice
        is_mini = self._random.random() < 0.25
        return {
            "prompt": choose(PROMPTS) + (" #flagged" if not is_mini and self._random.random() < 0.03 else ""),
            "model": "mini-zh" if is_mini else "zh-v0",
            "width": 64,
            "height": 64 if is_mini else choose((64, 128)),
            "steps": 2 if is_mini else choose((4, 10)),
            "count": choose((1, 1, 2, 4)),
            "tier": choose(list(Tier)),
            **fields,
        }

    async def submit(self, body: Json, tenant: str, kind: str, key: str | None) -> Json | None:
        """The job; with a key tried until it is answered, without one only once: nobody could say what became of it."""
        headers = {"Idempotency-Key": key} if key else {}
        answer = await self._request("POST", "/v1/jobs", tenant, headers, body, again=key is not None)
        if answer is None:
            return None
        if answer.status_code != 201:
            self.witness.contradictions["P1"].append(f"POST /v1/jobs: {answer.status_code} {answer.text[:300]}")
            return None
        job: Json = answer.json()
        self.witness.answered(job, tenant, key, kind)
        self.witness.counts["replayed"] += "Idempotency-Replayed" in answer.headers
        self.witness.counts["reused images"] += sum(image["reused"] for image in job["images"])
        return job

    async def cancel(self, job_id: str, tenant: str) -> bool:
        """Whether it was this that ended the job. A look right afterwards must show it."""
        self.witness.counts["cancels"] += 1
        asked_at = time.monotonic()
        answer = await self._request("POST", f"/v1/jobs/{job_id}/cancel", tenant)
        if answer is None or answer.status_code != 200:
            self.witness.contradictions["P7"].append(f"cancel {job_id}: {answer and answer.text[:300]}")
            return False
        job = answer.json()
        self.witness.saw(job, asked_at)
        if job["state"] not in TERMINAL_JOB:
            self.witness.contradictions["P7"].append(f"job {job_id} is {job['state']} after its cancellation")
        await self.look(job_id, tenant)
        self.witness.counts["cancelled"] += job["state"] == "cancelled"
        return bool(job["state"] == "cancelled")

    async def _until_ended(self, job_id: str, tenant: str) -> None:
        """Or for a minute."""
        for _ in range(60):
            job = await self.look(job_id, tenant)
            if job and job["state"] in TERMINAL_JOB:
                return
            await asyncio.sleep(1)

    async def delete(self, noun: str, id: str, tenant: str) -> None:
        """Delete a job or a batch. A look right afterwards, and a second deletion, must show it."""
        self.witness.deleting.add(id)
        path = f"/v1/{noun}/{id}"
        for expected, method in ((204, "DELETE"), (410, "GET"), (204, "DELETE")):
            answer = await self._request(method, path, tenant)
            if answer is None or answer.status_code != expected:
                self.witness.contradictions["P14"].append(f"{method} {path}: {answer and answer.text[:300]}")
                return
            self.witness.deleted.setdefault(id, time.monotonic())
        self.witness.counts[f"{noun} deleted"] += 1

    async def look(self, job_id: str, tenant: str) -> Json | None:
        asked_at = time.monotonic()
        answer = await self._request("GET", f"/v1/jobs/{job_id}", tenant)
        if answer is not None and answer.status_code == 410 and job_id in self.witness.deleting:
            return None
        if answer is None or answer.status_code != 200:
            self.witness.contradictions["P1"].append(f"job {job_id}: {answer and answer.text[:300]}")
            return None
        job: Json = answer.json()
        self.witness.saw(job, asked_at)
        return job

    async def duplicates(self, count: int) -> int:
        """The same request under one key, many times at once; how many were told of a job that another had made."""
        tenant, key, body = self._random.choice(TENANTS), str(uuid4()), self.recipe()
        before = self.witness.counts["replayed"]
        await asyncio.gather(*(self.submit(body, tenant, "duplicate", key) for _ in range(count)))
        return self.witness.counts["replayed"] - before

    async def poison(self) -> list[Json]:
        """A poisonous job and neighbours that share its microbatch, if they can."""
        return await self._with_neighbours(f"{POISON}{next(self._poisons)}", "poison")

    async def out_of_memory(self) -> list[Json]:
        """A job too large for the device, and its neighbours."""
        return await self._with_neighbours(OUT_OF_MEMORY, "out_of_memory")

    async def _with_neighbours(self, word: str, kind: str) -> list[Json]:
        tenant = self._random.choice(TENANTS)
        body = self.recipe(model="zh-v0", height=96, steps=5, count=2, tier=Tier.INTERACTIVE)
        bodies = [
            (body, "neighbour"),
            ({**body, "count": 1, "prompt": f"红色的圆形 {word}"}, kind),
            (body, "neighbour"),
        ]
        jobs = await asyncio.gather(*(self.submit(one, tenant, its_kind, str(uuid4())) for one, its_kind in bodies))
        return [job for job in jobs if job]

    async def _mismatch(self, body: Json, tenant: str, key: str) -> None:
        other = {**body, "prompt": "别的什么"}
        answer = await self._request("POST", "/v1/jobs", tenant, {"Idempotency-Key": key}, other)
        self.witness.counts["mismatches"] += 1
        if answer is None or answer.status_code != 422:
            self.witness.contradictions["P8"].append(f"another body under {key}: {answer and answer.status_code}")

    async def _look_around(self) -> None:
        """Now and then a list and a few jobs that have long ended."""
        while not self._stopping.is_set():
            await asyncio.sleep(1.0)
            tenant = self._random.choice(TENANTS)
            asked_at = time.monotonic()
            page = await self._request("GET", "/v1/jobs?limit=60", tenant, again=False)
            for job in page.json()["items"] if page is not None and page.status_code == 200 else ():
                self.witness.saw(job, asked_at)
            asked_at = time.monotonic()
            answer = await self._request("GET", "/v1/usage", tenant, again=False)
            if answer is not None and answer.status_code == 200:
                self.witness.told_usage(tenant, answer.json()["total"]["images"], asked_at)
            ended = list(self.witness.ended)
            for job_id in self._random.sample(ended, min(3, len(ended))):
                if accepted := self.witness.jobs.get(job_id):
                    await self.look(job_id, accepted.tenant)

    # One request, through either API, until it is answered

    async def _request(
        self,
        method: str,
        path: str,
        tenant: str,
        headers: dict[str, str] | None = None,
        body: Json | None = None,
        again: bool = True,
    ) -> httpx.Response | None:
        secret, deadline = self.farm.keys[tenant], time.monotonic() + 300
        headers = {"Authorization": f"Bearer {secret}", **(headers or {})}
        while True:
            url = self._random.choice(self.farm.urls)
            try:
                answer = await self._client.request(method, url + path, headers=headers, json=body)
                if answer.status_code < 500:
                    return answer
                self.witness.counts[f"answered {answer.status_code}"] += 1
                if answer.status_code != 503:
                    self.witness.contradictions["API"].append(f"{method} {path}: {answer.status_code} {answer.text}")
            except httpx.TransportError as error:
                self.witness.counts[type(error).__name__] += 1
            if not again or time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.2 + 0.6 * self._random.random())
