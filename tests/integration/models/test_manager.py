"""Which models a worker holds in memory, which one makes room for another, and how many images each can take."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine

from common.catalog.catalog import Model
from common.config import Settings
from common.errors import ModelRefused, OutOfMemory, RenderFailed
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker
from worker.models.manager import FOR_EVER_S, SWAP_DELAY_S, ModelManager
from worker.pipelines import batch_size
from worker.pipelines.base import ImageRequest, OnStep, Pipeline, RenderedImage
from worker.pipelines.stable_diffusion import StableDiffusion
from worker.pipelines.stub import BYTES, StubPipeline
from worker.watchdog import Watchdog, limits

MINI = replace(CATALOG.get("mini-zh"), microbatch=None)  # as models are whose capacity is to be found
ALL = [replace(MINI, name=name) for name in "abc"]
CLASS = {"device": "cpu", "torch": "2"}

MakeGallery = Callable[..., ModelManager]


@pytest.fixture
def make_gallery(settings: Settings, database: Engine) -> Iterator[MakeGallery]:
    made = []

    def make(
        *models: Model, kind: type[ModelManager] = ModelManager, worker_class: dict[str, Any] = CLASS, **changes: Any
    ) -> ModelManager:
        own = settings.model_copy(update={"torch_threads": 1, **changes})
        gallery = kind(models, own, worker_class, database, Watchdog(limits(own, "stub"), lambda reason: None))
        made.append(gallery)
        return gallery

    yield make
    for gallery in made:
        gallery.close()


# Memory


def test_the_model_not_used_for_longest_makes_room(make_gallery: MakeGallery) -> None:
    gallery = make_gallery(*ALL, model_memory=2 * BYTES)
    first = gallery.painter("a")
    gallery.painter("b")
    assert gallery.painter("a") is first
    gallery.painter("c")
    assert gallery.resident == ("a", "c")
    gallery.painter("b")
    assert gallery.resident == ("c", "b")


def test_a_model_that_is_larger_than_the_memory_is_held_alone(make_gallery: MakeGallery) -> None:
    gallery = make_gallery(*ALL, model_memory=BYTES // 2)
    for name in ("a", "b"):
        gallery.painter(name)
        assert gallery.resident == (name,)


def test_room_is_made_before_a_model_is_loaded(make_gallery: MakeGallery) -> None:
    class Watched(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            assert len(self.resident) < 2
            return super()._load(model)

    gallery = make_gallery(*ALL, kind=Watched, model_memory=2 * BYTES)
    for name in "abcab":
        gallery.painter(name)
    assert len(gallery.resident) == 2


def test_when_the_device_is_full_all_others_make_room(make_gallery: MakeGallery) -> None:
    """Others may use the device too, and then it holds less than its memory."""

    class Full(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            if self.resident or model.name == "c":
                raise OutOfMemory("Out of memory.")
            return super()._load(model)

    gallery = make_gallery(*ALL, kind=Full, model_memory=10 * BYTES)
    for name in ("a", "b"):
        gallery.painter(name)
        assert gallery.resident == (name,)
    with pytest.raises(ModelRefused):
        gallery.painter("c")
    assert list(gallery.refusals()) == ["c"]


def test_a_refused_model_of_the_hub_is_tried_again_after_five_minutes_and_a_folder_is_not(
    make_gallery: MakeGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            raise ModelRefused("It is broken.")

    gallery = make_gallery(MINI, replace(MINI, name="hub", source_path=None), kind=Strict)
    for name in (MINI.name, "hub"):
        with pytest.raises(ModelRefused):
            gallery.painter(name)
    real = time.monotonic
    for minutes, servable in ((0, []), (4, []), (6, ["hub"])):
        with monkeypatch.context() as here:
            here.setattr(time, "monotonic", lambda later=60 * minutes: real() + later)
            assert [model.name for model in gallery.servable()] == servable


def test_models_that_do_not_fit_together_are_not_swapped_at_once(make_gallery: MakeGallery) -> None:
    gallery = make_gallery(*ALL, model_memory=2 * BYTES)
    gallery.painter("a")
    assert gallery.patience_s == FOR_EVER_S
    gallery._last_load -= SWAP_DELAY_S + 1
    assert gallery.patience_s == SWAP_DELAY_S


def test_models_that_fit_together_need_no_patience(story: Story, make_worker: MakeWorker) -> None:
    worker = make_worker(model_memory=2 * BYTES, models="mini-zh,zh-v0")
    jobs = [story.submit(model=model, width=64, height=64) for model in ("mini-zh", "zh-v0", "mini-zh")]
    worker.engine.work(30)
    assert worker.holdings.wait_until_empty(20)
    assert {story.job(job).state for job in jobs} == {"succeeded"}
    assert set(worker.gallery.resident) == {"mini-zh", "zh-v0"}
    assert worker.gallery.patience_s == 0


# Capacity


def recorded(story: Story) -> list[int]:
    return [row.images for row in story.rows("SELECT images FROM batch_sizes")]


def test_a_capacity_is_found_once_for_a_class_of_workers(
    story: Story, make_gallery: MakeGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0)  # what is found matters elsewhere
    searches, find = [], StableDiffusion.find_capacity

    def watched(painter: StableDiffusion, reserved: int) -> int:
        searches.append(painter)
        return find(painter, reserved)

    monkeypatch.setattr(StableDiffusion, "find_capacity", watched)
    for _ in range(2):
        gallery = make_gallery(MINI, device="cpu")
        assert gallery.capacities == {}
        gallery.painter("mini-zh")
        assert recorded(story) == [gallery.capacities["mini-zh"]]
        with story.database.begin() as connection:  # what no search finds
            connection.exec_driver_sql("UPDATE batch_sizes SET images = 77")
    assert gallery.capacity(MINI) == 77
    assert len(searches) == 1
    make_gallery(MINI, device="cpu", worker_class={**CLASS, "torch": "3"}).painter("mini-zh")
    assert len(recorded(story)) == len(searches) == 2


def test_a_capacity_that_the_catalogue_has_is_not_looked_for(story: Story, make_gallery: MakeGallery) -> None:
    gallery = make_gallery(replace(MINI, microbatch=3), device="cpu")
    gallery.painter("mini-zh")
    assert (gallery.capacities, recorded(story)) == ({"mini-zh": 3}, [])


def test_a_painter_too_slow_to_be_tried_takes_one_image(
    make_gallery: MakeGallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "TRIAL_S", 0)
    gallery = make_gallery(MINI, device="cpu")
    gallery.painter("mini-zh")
    assert gallery.capacities == {"mini-zh": 1}


class Counting(StubPipeline):
    """Remembers how many it painted at once."""

    counts: list[int]

    def paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        self.counts.append(len(strokes))
        return super().paint(strokes, on_step)


@pytest.mark.parametrize(("side", "counts"), [(64, [8]), (128, [8]), (184, [3, 3, 2]), (256, [2, 2, 2, 2])])
def test_larger_pictures_are_painted_in_smaller_parts(
    story: Story, make_worker: MakeWorker, side: int, counts: list[int]
) -> None:
    job = story.submit(count=8, width=side, height=side)
    worker = make_worker()
    counting = Counting(MINI)
    counting.counts = []
    worker.gallery._painters = {"mini-zh": counting}
    worker.engine.work(30)
    assert worker.holdings.wait_until_empty(20)
    assert story.job(job).state == "succeeded"
    assert counting.counts == counts


def test_the_end_of_a_microbatch_is_foreseen_over_all_its_parts(story: Story, make_worker: MakeWorker) -> None:
    story.submit(count=8, width=256, height=256, steps=5)
    worker = make_worker(device="stub:0.02")
    left = []

    class Telling(StubPipeline):
        def paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
            def told(step: int, steps: int) -> None:
                on_step(step, steps)
                if step == steps:
                    left.append(worker.brush.rendering.seconds_left())

            return super().paint(strokes, told)

    worker.gallery._painters = {"mini-zh": Telling(MINI, 0.02)}
    worker.engine.work(30)
    assert len(left) == 4
    assert min(left[:3]) > 0 >= left[3]
