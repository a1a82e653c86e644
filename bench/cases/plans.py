"""Whether plans hold: the real time of a batch, from its submission until it has ended, beside the p50 of a dry run
just before. The farm has rendered one batch of the same kind before, no more. `stub` is a fake GPU of 200 ms for a
microbatch of 8; `mini-zh` renders on the CPU, cold: the worker has another model in memory, or warm. `behind another
batch` is planned and submitted while a batch of the same tenant and tier, three times as large, is rendered. A p50 is
exceeded as often as not, so the goal is a range; `within p90` is 1 where the real time was below the dry run's p90.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.harness import peers
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.config import SHIPPED_CATALOG, Settings
from common.db import connect

RATIO = "real ÷ p50"
SIDES = ("stub", "mini-zh, cold", "mini-zh, warm", "behind another batch")
GOALS = tuple(Goal(side, measure=RATIO, at_least=0.7, at_most=1.4) for side in SIDES)
DEVICE = f"stub:{0.2 / peers.STEPS}"
STUB: dict[str, Any] = {"model": "mini-zh", "width": 128, "height": 128, "steps": peers.STEPS}
MINI: dict[str, Any] = {"model": "mini-zh", "width": 128, "height": 128, "steps": 20}
OTHER = "other"  # a second model, the same weights in another folder
TIMEOUT_S = 1800


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    stub, mini = (160, 16) if options.quick else (1200, 120)
    with farm() as the_farm, tempfile.TemporaryDirectory(prefix="huafang-bench-") as folder:
        settings = the_farm.settings.model_copy(update={"catalog": two_models(Path(folder))})
        database = connect(settings, pool=1)
        key = the_farm.key(database)
        database.dispose()
        with the_farm.control(settings), the_farm.api(settings) as url, client_of(url, key) as client:
            planned = partial(side, the_farm, settings, client)
            yield {
                "stub": lambda: planned(DEVICE, STUB, stub),
                "mini-zh, cold": lambda: planned("cpu", MINI, mini, first=OTHER),
                "mini-zh, warm": lambda: planned("cpu", MINI, mini),
                "behind another batch": lambda: planned(DEVICE, STUB, stub, ahead=3 * stub),
            }


def side(
    the_farm: Farm,
    settings: Settings,
    client: httpx.Client,
    device: str,
    recipe: dict[str, Any],
    images: int,
    first: str = "mini-zh",
    ahead: int = 0,
) -> Figures:
    """Render a batch that the farm knows such batches by, then plan and submit one. `first`: the model in memory."""
    models = "mini-zh" if first == "mini-zh" else f"{first},mini-zh"
    with the_farm.worker(settings, device, "--models", models, TORCH_THREADS="1"):
        ended(client, submit(client, recipe, images // 2))
        if first == "mini-zh":
            return plan(client, recipe, images, ahead)
    with the_farm.worker(settings, device, "--models", models, TORCH_THREADS="1"):
        return plan(client, recipe, images, ahead)


def plan(client: httpx.Client, recipe: dict[str, Any], images: int, ahead: int) -> Figures:
    if ahead:
        before = submit(client, recipe, ahead)
        wait_until(lambda: read(client, before)["images"]["stored"] > 0, seconds=TIMEOUT_S)
    estimate = post(client, body_of(recipe, images), dry_run="true")["estimate"]
    batch = ended(client, submit(client, recipe, images))
    real = (datetime.fromisoformat(batch["finished_at"]) - datetime.fromisoformat(batch["created_at"])).total_seconds()
    return {
        RATIO: real / estimate["seconds"],
        "within p90": float(real <= estimate["seconds_p90"]),
        "real, s": real,
        "p50, s": estimate["seconds"],
        "p90, s": estimate["seconds_p90"],
    }


def body_of(recipe: dict[str, Any], images: int) -> dict[str, Any]:
    return {"prompts": [f"红色的圆形，第{number}幅" for number in range(images)], "defaults": recipe, "seed": 1}


def submit(client: httpx.Client, recipe: dict[str, Any], images: int) -> str:
    return str(post(client, body_of(recipe, images))["id"])


def post(client: httpx.Client, body: dict[str, Any], **query: str) -> dict[str, Any]:
    def answered() -> httpx.Response | None:
        answer = client.post("/v1/batches", json=body, params=query)
        return None if answer.status_code == 503 else answer  # too busy to begin

    answer = wait_until(answered)
    assert answer
    return dict(answer.raise_for_status().json())


def read(client: httpx.Client, batch: str) -> dict[str, Any]:
    return dict(client.get(f"/v1/batches/{batch}").raise_for_status().json())


def ended(client: httpx.Client, batch: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        last = read(client, batch)
        return last if last["state"] == "ended" else None

    last = wait_until(found, seconds=TIMEOUT_S)
    assert last
    assert last["images"]["stored"] == last["images"]["total"], last
    return last


@contextmanager
def client_of(url: str, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def two_models(folder: Path) -> Path:
    """A catalogue with mini-zh and, as another model, a copy of it."""
    for name in ("mini-zh", OTHER):
        shutil.copytree(SHIPPED_CATALOG.parent / "mini-zh", folder / name)
    shutil.copytree(SHIPPED_CATALOG.parent / "licences", folder / "licences")
    shipped = SHIPPED_CATALOG.read_text()
    entry = re.search(r"^\[models\.mini-zh\]\n.*?(?=^\[(?!models\.mini-zh)|\Z)", shipped, re.MULTILINE | re.DOTALL)
    assert entry
    copy = entry.group().replace("models.mini-zh", f"models.{OTHER}").replace('"./mini-zh"', f'"./{OTHER}"')
    catalog = folder / "catalog.toml"
    catalog.write_text(f"{shipped}\n{copy}")
    return catalog
