"""Which models are in memory, which are evicted for others, and their batch sizes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from common.catalog.catalog import Model
from common.config import Settings
from common.errors import ModelRefused, NanImage, OutOfMemory, RenderFailed
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, until_published
from worker.models.manager import NEVER_S, SWAP_DELAY_S, ModelManager
from worker.models.trial import Fault
from worker.pipelines import batch_size
from worker.pipelines.base import ImageRequest, OnStep, Pipeline, RenderedImage
from worker.pipelines.diffusers_pipeline import DiffusersPipeline
from worker.pipelines.stub import MODEL_BYTES, StubPipeline
from worker.watchdog import Watchdog, limits

MINI = replace(CATALOG.get("mini-zh"), microbatch=None)  # so that its batch size is found
ALL = [replace(MINI, name=name) for name in "abc"]
CLASS = {"device": "cpu", "torch": "2"}

MakeManager = Callable[..., ModelManager]


@pytest.fixture
def faults() -> list[Fault]:
    """Of this host, as the managers tell them."""
    return []


@pytest.fixture
def make_manager(settings: Settings, database: Engine, faults: list[Fault]) -> Iterator[MakeManager]:
    made = []

    def make(
        *models: Model, kind: type[ModelManager] = ModelManager, worker_class: dict[str, Any] = CLASS, **changes: Any
    ) -> ModelManager:
        own = settings.model_copy(update={"torch_threads": 1, **changes})
        manager = kind(
            models,
            own,
            worker_class,
            database,
            Watchdog(limits(own, "stub"), lambda reason: None),
            "w",
            faults.append,
        )
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.close()


# Memory


def test_the_least_recently_used_model_is_evicted(make_manager: MakeManager) -> None:
    manager = make_manager(*ALL, model_memory=2 * MODEL_BYTES)
    first = manager.get("a")
    manager.get("b")
    assert manager.get("a") is first
    manager.get("c")
    assert manager.resident == ("a", "c")
    manager.get("b")
    assert manager.resident == ("c", "b")


def test_a_model_larger_than_the_memory_is_alone_in_it(make_manager: MakeManager) -> None:
    manager = make_manager(*ALL, model_memory=MODEL_BYTES // 2)
    for name in ("a", "b"):
        manager.get(name)
        assert manager.resident == (name,)


def test_a_model_is_evicted_before_another_is_loaded(make_manager: MakeManager) -> None:
    class Checking(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            assert len(self.resident) < 2
            return super()._load(model)

    manager = make_manager(*ALL, kind=Checking, model_memory=2 * MODEL_BYTES)
    for name in "abcab":
        manager.get(name)
    assert len(manager.resident) == 2


def test_others_are_evicted_for_a_model_that_takes_more_memory_than_its_files(make_manager: MakeManager) -> None:
    class Larger(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            pipeline = super()._load(model)
            if model.name == "c":
                pipeline.components = {"c": 2 * MODEL_BYTES}
            return pipeline

    manager = make_manager(*ALL, kind=Larger, model_memory=3 * MODEL_BYTES)
    for name in "abc":
        manager.get(name)
    assert manager.resident == ("b", "c")


def test_when_a_load_runs_out_of_memory_all_others_are_evicted(make_manager: MakeManager) -> None:
    """Other processes may use the device too."""

    class Full(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            if self.resident or model.name == "c":
                raise OutOfMemory("Out of memory.")
            return super()._load(model)

    manager = make_manager(*ALL, kind=Full, model_memory=10 * MODEL_BYTES)
    for name in ("a", "b"):
        manager.get(name)
        assert manager.resident == (name,)
    with pytest.raises(ModelRefused):
        manager.get("c")
    assert list(manager.refusals()) == ["c"]


def test_a_model_that_had_no_room_is_offered_again_after_five_minutes(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(ModelManager):
        def _load(self, model: Model) -> Pipeline:
            raise OutOfMemory("Out of memory.")

    manager, clock = make_manager(*ALL, kind=Full), time.monotonic
    with pytest.raises(ModelRefused):
        manager.get("a")
    for minutes, offered in ((4, ["b", "c"]), (6, ["a", "b", "c"])):
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic", lambda seconds=60 * minutes: clock() + seconds)
            assert [model.name for model in manager.available()] == offered


def test_models_that_do_not_fit_together_are_not_swapped_at_once(make_manager: MakeManager) -> None:
    manager = make_manager(*ALL, model_memory=2 * MODEL_BYTES)
    manager.get("a")
    assert manager.swap_delay_s == NEVER_S
    manager._last_load -= SWAP_DELAY_S + 1
    assert manager.swap_delay_s == SWAP_DELAY_S


def test_models_that_fit_together_have_no_swap_delay(story: Story, make_worker: MakeWorker) -> None:
    worker = make_worker(model_memory=2 * MODEL_BYTES, models="mini-zh,zh-v0")
    jobs = [story.submit(model=model, width=64, height=64) for model in ("mini-zh", "zh-v0", "mini-zh")]
    worker.loop.run(30)
    until_published(worker)
    assert {story.job(job).state for job in jobs} == {"succeeded"}
    assert set(worker.models.resident) == {"mini-zh", "zh-v0"}
    assert worker.models.swap_delay_s == 0


# Trial pictures


class Sick(ModelManager):
    """On a device that fails at each call."""

    how: Callable[..., object]

    def _load(self, model: Model) -> Pipeline:
        pipeline = super()._load(model)
        vars(pipeline)["generate"] = self.how
        return pipeline


def raising(requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
    raise ZeroDivisionError


def blank(requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
    return [RenderedImage(np.zeros((64, 64, 3), np.uint8), flagged=False)]


def nan(requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
    return [NanImage("NaN.")]


@pytest.mark.parametrize(
    ("how", "why"), [(raising, "ZeroDivisionError"), (blank, "all its pixels are the same"), (nan, "NaN")]
)
def test_a_model_that_nobody_could_try_out_is_refused_and_nobody_is_quarantined(
    story: Story, make_manager: MakeManager, faults: list[Fault], how: Callable[..., object], why: str
) -> None:
    manager = make_manager(*ALL, kind=type("SickSo", (Sick,), {"how": staticmethod(how)}))
    with pytest.raises(ModelRefused, match=why):
        manager.get("a")
    assert (list(manager.refusals()), manager.resident, faults) == (["a"], (), [])
    assert story.count("trial_pictures") == 0


@pytest.mark.parametrize(("how", "why"), [(raising, "ZeroDivisionError"), (blank, "all its pixels"), (nan, "NaN")])
def test_a_model_that_others_could_try_out_is_served_and_its_host_is_at_fault(
    make_manager: MakeManager, faults: list[Fault], how: Callable[..., object], why: str
) -> None:
    make_manager(*ALL).get("a")
    manager = make_manager(*ALL, kind=type("SickSo", (Sick,), {"how": staticmethod(how)}))
    manager.get("a")
    (fault,) = faults
    assert (fault.model, fault.why.code, fault.known_picture) == ("a", "trial_failed", None)
    assert why in fault.why
    assert manager.resident == ("a",)


def test_only_workers_of_one_class_compare_their_pictures(
    story: Story, make_manager: MakeManager, faults: list[Fault]
) -> None:
    for worker_class in (CLASS, CLASS, {**CLASS, "torch": "3"}):
        make_manager(*ALL, worker_class=worker_class).get("a")
    assert (story.count("trial_pictures"), faults) == (2, [])


# Batch sizes


def recorded(story: Story) -> list[int]:
    return [row.images for row in story.rows("SELECT images FROM batch_sizes")]


def test_a_batch_size_is_found_once_for_a_class_of_workers(
    story: Story, make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "BENCHMARK_S", 0)  # the number does not matter here
    searches, find = [], DiffusersPipeline.find_batch_size

    def counted(pipeline: DiffusersPipeline, reserved: int) -> int:
        searches.append(pipeline)
        return find(pipeline, reserved)

    monkeypatch.setattr(DiffusersPipeline, "find_batch_size", counted)
    for _ in range(2):
        manager = make_manager(MINI, device="cpu")
        assert manager.batch_sizes == {}
        manager.get("mini-zh")
        assert recorded(story) == [manager.batch_sizes["mini-zh"]]
        with story.database.begin() as connection:  # no benchmark finds it
            connection.exec_driver_sql("UPDATE batch_sizes SET images = 77")
    assert manager.batch_size(MINI) == 77
    assert len(searches) == 1
    make_manager(MINI, device="cpu", worker_class={**CLASS, "torch": "3"}).get("mini-zh")
    assert len(recorded(story)) == len(searches) == 2


def test_a_batch_size_of_the_catalogue_is_used_without_a_benchmark(story: Story, make_manager: MakeManager) -> None:
    manager = make_manager(replace(MINI, microbatch=3), device="cpu")
    manager.get("mini-zh")
    assert (manager.batch_sizes, recorded(story)) == ({"mini-zh": 3}, [])


def test_a_slow_pipeline_renders_one_image_at_a_time(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "BENCHMARK_S", 0)
    manager = make_manager(MINI, device="cpu")
    manager.get("mini-zh")
    assert manager.batch_sizes == {"mini-zh": 1}


class Counting(StubPipeline):
    """Records the number of requests in each call."""

    counts: list[int]

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        self.counts.append(len(requests))
        return super().generate(requests, on_step)


@pytest.mark.parametrize(("side", "counts"), [(64, [8]), (128, [8]), (184, [3, 3, 2]), (256, [2, 2, 2, 2])])
def test_larger_images_are_rendered_in_smaller_calls(
    story: Story, make_worker: MakeWorker, side: int, counts: list[int]
) -> None:
    job = story.submit(count=8, width=side, height=side)
    worker = make_worker()
    counting = Counting(MINI)
    counting.counts = []
    worker.models._pipelines = {"mini-zh": counting}
    worker.loop.run(30)
    until_published(worker)
    assert story.job(job).state == "succeeded"
    assert counting.counts == counts


def test_the_end_of_a_microbatch_is_estimated_over_all_its_calls(story: Story, make_worker: MakeWorker) -> None:
    story.submit(count=8, width=256, height=256, steps=5)
    worker = make_worker(device="stub:0.02")
    left = []

    class Recording(StubPipeline):
        def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
            def record(step: int, steps: int) -> None:
                on_step(step, steps)
                if step == steps:
                    left.append(worker.render_thread.current.seconds_left())

            return super().generate(requests, record)

    worker.models._pipelines = {"mini-zh": Recording(MINI, 0.02)}
    worker.loop.run(30)
    assert len(left) == 4
    assert min(left[:3]) > 0 >= left[3]
