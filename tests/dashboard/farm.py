"""A farm with jobs of every kind, batches and a dataset, for all tests of the dashboard.

    the API       as in `tests.support.serving`
    a control     expands batches, exports datasets, sweeps
    画室          a worker with a quick stub: mini-zh and taiyi
    the hostile   a worker with a slow stub and a hostile name: zh-v0, two seconds a step

All are threads of this process and poll for work instead of getting messages of Celery. No worker serves rinna.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID

import httpx
from sqlalchemy import Engine

from common.accounts import keys, tenants
from common.batches import lifecycle as batches
from common.broker import Broker
from common.catalog.catalog import SCHEDULERS
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.db import connect, transaction
from common.enums import ImageState, Scope
from common.storage import Storage
from tests.dashboard.corpus import HOSTILE
from tests.support.serving import Api, serving
from tests.support.stories import CATALOG, Story
from tests.support.workers import quarantine, until
from worker.control.batch_expander import Expander
from worker.control.sweep import Sweep
from worker.datasets.exporter import Exporter
from worker.render.worker import RenderWorker

TENANT = "画坊"
HOSTILE_NAME = HOSTILE["image"]

NAMES = """
    SELECT DISTINCT name FROM (
        SELECT recipe ->> 'prompt' FROM jobs UNION SELECT recipe ->> 'negative_prompt' FROM jobs
        UNION SELECT name FROM batches UNION SELECT name FROM tenants UNION SELECT name FROM api_keys
        UNION SELECT name FROM workers UNION SELECT name FROM quarantines
        UNION SELECT key FROM workers, jsonb_each(class)
        UNION SELECT value FROM workers, jsonb_each_text(class)
    ) AS names (name) WHERE name IS NOT NULL
"""

SMALL = {"width": 64, "height": 64, "steps": 1}
HALF_SERVED = {"model": ["mini-zh", "rinna"]}  # of each prompt one image is stored and one waits
POLL_S = 0.2
ENDED = ("succeeded", "failed", "cancelled")


@dataclass
class DashboardFarm:
    api: Api
    story: Story
    client: httpx.Client
    secrets: Mapping[str, str]  # of the keys, by scope; `admin` also runs the farm
    jobs: dict[str, str] = field(default_factory=dict)  # ids by what became of the job
    batches: dict[str, str] = field(default_factory=dict)
    dataset: str = ""

    @property
    def url(self) -> str:
        return self.api.url

    def address(self, path: str) -> str:
        """The path of a view, with the ids of a job, an image, a batch, a dataset and the tenant of this farm."""
        image = self.job(self.jobs["of 5 steps"])["images"][0]["id"]
        batch = self.batches["with failures"]
        ids = {"job": self.jobs["succeeded"], "image": image, "batch": batch, "dataset": self.dataset}
        return path.format(**ids, tenant=self.story.tenant(TENANT))

    @cached_property
    def names(self) -> list[str]:
        """The names and prompts of this farm: the same in every language."""
        models = [f for m in CATALOG.models.values() for f in (m.name, m.source, m.description, m.licence.name)]
        models += CATALOG.styles
        return [*(row.name for row in self.story.rows(NAMES)), *models, *SCHEDULERS, *HOSTILE.values()]

    def submit(self, prompt: str, **fields: Any) -> str:
        answer = self.client.post("/v1/jobs", json={"prompt": prompt, **SMALL, **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def submit_batch(self, name: str, prompts: list[str], **fields: Any) -> str:
        draft = {"name": name, "prompts": prompts, "seed": 1, "defaults": SMALL} | fields
        answer = self.client.post("/v1/batches", json=draft)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/jobs/{job_id}").json())

    def batch(self, batch_id: str) -> dict[str, Any]:
        return dict(self.client.get(f"/v1/batches/{batch_id}").json())

    def until_ended(self, *job_ids: str) -> None:
        until(lambda: all(self.job(job_id)["state"] in ENDED for job_id in job_ids))

    @cached_property
    def worker_ids(self) -> dict[str, str]:
        """By name."""
        return {worker["name"]: worker["id"] for worker in self.client.get("/v1/workers").json()["items"]}


@contextmanager
def dashboard_farm(settings: Settings) -> Iterator[DashboardFarm]:
    with ExitStack() as stack:
        database = connect(settings, pool=8)
        stack.callback(database.dispose)
        api = stack.enter_context(serving(settings, database))
        secrets = {scope.value: make_key(api, scope) for scope in (Scope.VIEWER, Scope.JOBS_READ)}
        secrets["admin"] = make_key(api, Scope.ADMIN, Scope.OPERATOR)
        client = stack.enter_context(api.stranger(headers={"Authorization": f"Bearer {secrets['admin']}"}))
        farm = DashboardFarm(api, Story(database), client, secrets)
        for model in CATALOG.models.values():
            licence = {"version": model.licence.version}
            assert client.post(f"/v1/models/{model.name}/licence", json=licence).status_code == 200
        for name, device, models in (
            ("画室", "stub", "mini-zh,taiyi"),
            (HOSTILE_NAME, "stub:2", "zh-v0"),
        ):
            own = {"worker_name": name, "device": device, "models": models, "beat_s": POLL_S, "drain_s": 0}
            stack.enter_context(rendering(settings.model_copy(update=own)))
        stack.enter_context(controlling(settings, database))
        fill(farm)
        yield farm


def make_key(api: Api, *scopes: Scope) -> str:
    with transaction(api.database) as connection:
        tenant_id = tenants.ensure_tenant(connection, TENANT)
        pepper = api.settings.key_pepper.get_secret_value()
        return keys.create_key(connection, tenant_id, f"{scopes[0]} {HOSTILE['script']}", scopes, pepper).secret


@contextmanager
def rendering(settings: Settings) -> Iterator[None]:
    worker = RenderWorker(settings, CATALOG)
    worker.start()
    try:
        yield
    finally:
        worker.loop.drain()
        worker.loop.drain()
        worker.stop()
        worker.database.dispose()


@contextmanager
def controlling(settings: Settings, database: Engine) -> Iterator[None]:
    storage, messages, stopping = Storage(settings), Broker(settings), threading.Event()
    sweep = Sweep(settings, database, messages, storage)
    expander, exporter = Expander(database, storage, messages, CATALOG), Exporter(database, storage, CATALOG)

    def control() -> None:
        while not stopping.wait(POLL_S):
            sweep.once()
            with transaction(database) as connection:
                to_expand, to_export = batches.stalled(connection, 0), datasets.due(connection, 60, 0)
            for batch_id in to_expand:
                expander.work(batch_id)
            for dataset_id in to_export:
                exporter.work(dataset_id)

    thread = threading.Thread(target=control, name="control")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)


def fill(farm: DashboardFarm) -> None:
    jobs, batch = farm.jobs, farm.batches
    batch["with failures"] = farm.submit_batch(
        "第一批 <b data-xss>粗</b>", [f"一个红色的圆形，第{n}幅" for n in range(8)] + ["星形 #flagged", "心形 #nan"]
    )
    batch["running"] = farm.submit_batch("第二批", [f"蓝色的正方形，第{n}幅" for n in range(6)], matrix=HALF_SERVED)
    batch["paused"] = farm.submit_batch("第三批", [f"黄色的星形，第{n}幅" for n in range(4)], matrix=HALF_SERVED)
    batch["refused"] = farm.submit_batch("第四批", ["红" * 400])

    quarantine(farm.story, f"修理中的机器 {HOSTILE_NAME}", f"its trial picture failed {HOSTILE['script']}")
    jobs["running"] = farm.submit("夜空中的月亮", model="zh-v0", steps=150, width=256, height=256)
    jobs["succeeded"] = farm.submit("一只橙色的猫，背景是蓝色的", count=4, width=128, height=128, tier="interactive")
    jobs["flagged"] = farm.submit("绿色的三角形 #flagged", count=2)
    jobs["failed"] = farm.submit("紫色的心形 #nan")
    jobs["waiting"] = farm.submit("富士山と桜", model="rinna")
    jobs["cancelled"] = farm.submit("不要的圆形", model="rinna")
    assert farm.client.post(f"/v1/jobs/{jobs['cancelled']}/cancel").status_code == 200
    for steps in (1, 5):
        jobs[f"of {steps} steps"] = farm.submit("草地上有一座红色的房子", steps=steps, seeds=[1, 2, 3])
    hostile = [farm.submit(prompt, model="taiyi", width=128, height=128) for prompt in HOSTILE.values()]
    jobs |= zip(HOSTILE, hostile, strict=True)
    jobs["failed with a hostile message"] = fail_with_hostile_message(farm)

    open_jobs = {"running", "waiting"}
    farm.until_ended(*(job_id for name, job_id in jobs.items() if name not in open_jobs))
    until(lambda: farm.batch(batch["with failures"])["state"] == "ended")
    until(lambda: farm.batch(batch["refused"])["state"] == "ended")
    until(lambda: [farm.batch(batch[name])["images"]["stored"] for name in ("running", "paused")] == [6, 4])
    assert farm.client.post(f"/v1/batches/{batch['paused']}/pause").status_code == 200
    farm.dataset = farm.client.post("/v1/datasets", json={"batch": batch["with failures"]}).json()["id"]
    until(lambda: farm.client.get(f"/v1/datasets/{farm.dataset}").json()["state"] == "ready")
    until(lambda: farm.job(jobs["running"])["state"] == "running")


def fail_with_hostile_message(farm: DashboardFarm) -> str:
    """A job that failed with a hostile message. The story claims it, before any other worker does."""
    job_id = farm.submit("白色的圆形", model="rinna", tier="interactive", steps=3)
    microbatch = farm.story.started(capacities={"rinna": 8})
    assert {image.job_id for image in microbatch.images} == {UUID(job_id)}
    message = " ".join(HOSTILE.values())
    farm.story.publish(microbatch, ImageState.FAILED, error_code="out_of_memory", error_message=message)
    return job_id
