"""A made-up family: a module, a table of facts and an entry in a catalogue, and the farm renders with it.

How its prompts may share a call is a fact of the table: the render thread splits a microbatch by it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from common.catalog import catalog, families
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import new_id
from common.queue.claim import Image, Microbatch
from common.recipes.recipe import Draft, resolve
from tests.support import checkpoints, toy
from tests.support.devices import DEVICE, LEVELS
from worker.models.manager import ModelManager
from worker.pipelines.base import RenderedImage
from worker.pipelines.diffusers_pipeline import DiffusersPipeline
from worker.quarantine.quarantine import Quarantine
from worker.render.inflight import InflightMicrobatch
from worker.render.input_images import PendingInputs
from worker.render.render_thread import RenderThread
from worker.watchdog import Watchdog, limits

PROMPTS = ("红", "女孩们打开了另一世界的大门", "红色的圆形", "蓝")  # the first and the last are equally long
FACTS = """
[toy]
like = "stable-diffusion"
code = "toy"
weighted = false
sharing = "{sharing}"
"""
ENTRY = """
default = "toy"
[models.toy]
source = "./tiny"
family = "toy"
description = "noise"
licence = "none"
licence_url = ""
width = 64
height = 64
token_limit = 60
microbatch = 8
"""

Pixels = NDArray[np.uint8]


class Farm:
    """What a render worker does between a claim and an upload."""

    def __init__(self, known: Catalog, settings: Settings, database: Engine) -> None:
        watchdog = Watchdog(limits(settings, DEVICE), lambda reason: None)
        quarantine, models = Quarantine(new_id(), "w", settings.trial_s), list(known.models.values())
        manager = ModelManager(models, settings, {"device": DEVICE}, database, watchdog, "w", quarantine.begin_by)
        self._catalog, self._thread = known, RenderThread(manager, watchdog, {"device": DEVICE}, quarantine)
        self.calls: list[int] = []  # the images of each
        self.close = self._thread.close
        pipeline = self._thread.load("toy").result()
        assert isinstance(pipeline, DiffusersPipeline)
        pipeline._pipe.vae.decoder.register_forward_pre_hook(lambda module, given: self.calls.append(len(given[0])))

    def render(self, *prompts: str) -> list[Pixels]:
        """The pictures of one microbatch. A prompt has the same seed in each."""
        images = tuple(self._image(prompt, PROMPTS.index(prompt)) for prompt in prompts)
        microbatch = Microbatch(new_id(), "toy", images)
        inflight = InflightMicrobatch(microbatch, PendingInputs({}), is_full=False)
        inflight.start([image.id for image in images])
        self.calls.clear()
        self._thread.render(inflight, lambda: None)
        inflight.wait_until_rendered(60)
        results = [result for _, result in inflight.rendered().results]
        assert all(isinstance(result, RenderedImage) for result in results), results
        return [result.pixels for result in results if isinstance(result, RenderedImage)]

    def _image(self, prompt: str, seed: int) -> Image:
        draft = Draft.model_validate({"prompt": prompt, "model": "toy", "steps": 3, "seed": seed})
        return Image(new_id(), new_id(), 0, 0, resolve(draft, self._catalog, "toy", root_seed=seed), None)


Open = Callable[[str], Farm]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    checkpoints.make(folder / "tiny")
    (folder / "catalog.toml").write_text(ENTRY, "utf-8")
    return folder


@pytest.fixture
def farm(
    folder: Path, settings: Settings, database: Engine, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[Farm]:
    """With the sharing of the test's parameter."""
    facts = folder / "families.toml"
    facts.write_text(families.FILE.read_text("utf-8") + FACTS.format(sharing=request.param), "utf-8")
    monkeypatch.setattr(families, "FILE", facts)
    monkeypatch.setitem(sys.modules, "worker.pipelines.families.toy", toy)
    families.families.cache_clear()
    try:
        own = settings.model_copy(update={"device": DEVICE, "torch_threads": 1})
        with closing(Farm(catalog.read(folder / "catalog.toml"), own, database)) as opened:
            yield opened
    finally:
        monkeypatch.undo()
        families.families.cache_clear()


def farthest(some: Sequence[Pixels], others: Sequence[Pixels]) -> int:
    return max(int(np.abs(one.astype(int) - other).max()) for one, other in zip(some, others, strict=True))


def alone(farm: Farm) -> list[Pixels]:
    return [farm.render(prompt)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("farm", ["equal_length"], indirect=True)
def test_prompts_of_different_length_share_no_call(farm: Farm) -> None:
    together = farm.render(*PROMPTS)
    assert sorted(farm.calls) == [1, 1, 2]
    assert farthest(together, alone(farm)) <= LEVELS


@pytest.mark.parametrize("farm", ["any"], indirect=True)
def test_in_one_call_they_would_change_each_other(farm: Farm) -> None:
    together = farm.render(*PROMPTS)
    assert farm.calls == [4]
    assert farthest(together, alone(farm)) > LEVELS


@pytest.mark.parametrize("farm", ["single"], indirect=True)
def test_a_family_that_shares_nothing_is_rendered_one_by_one(farm: Farm) -> None:
    """Even if its entry says otherwise."""
    together = farm.render(*PROMPTS)
    assert farm.calls == [1, 1, 1, 1]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone(farm), strict=True))
