"""With `offload`, what of a model is on the device is only what the stage of the call needs, for every family.

A CPU is taken for two: `cpu:0` is the device, `cpu` the host's memory. So the tests see what is moved, and no speed.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import Interrupted
from tests.conformance.test_pipelines import MINI, generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE
from tests.support.twins import twins
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest
from worker.pipelines.diffusers_pipeline import DiffusersPipeline, modules
from worker.pipelines.placement import DECODE, DENOISE, ENCODE, needed_by

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

MODES = ("text2image", "image2image", "inpaint")
VAE = frozenset({"vae"})  # encodes the source
INDEXED = DEVICE if ":" in DEVICE else f"{DEVICE}:0"


class Watched:
    """A pipeline, and what of it is on the device whenever one of its components computes."""

    def __init__(self, model: Any) -> None:
        loaded = registry.load(replace(model, offload=True), INDEXED, threads=1)
        assert isinstance(loaded, DiffusersPipeline)
        self.pipeline = loaded
        self.present: set[str] = set()
        self.names: list[str] = []
        self.computed: dict[str, set[frozenset[str]]] = {}
        checker = getattr(loaded._judged_by, "safety_checker", None)
        for name, part in {**modules(loaded._pipe), **({"safety_checker": checker} if checker else {})}.items():
            self._watch(name, part)

    def _watch(self, name: str, part: torch.nn.Module) -> None:
        self.names.append(name)
        move = part.to

        def to(*args: Any, **kwargs: Any) -> torch.nn.Module:
            if args and isinstance(args[0], (str, torch.device)):
                (self.present.add if torch.device(args[0]) == torch.device(INDEXED) else self.present.discard)(name)
            return move(*args, **kwargs)

        def computes(*_: Any) -> None:
            self.computed.setdefault(name, set()).add(frozenset(self.present))

        part.to = to  # type: ignore[method-assign]
        for inner in part.children():  # a VAE's call is that of its encoder or its decoder
            inner.register_forward_pre_hook(computes)


@pytest.fixture(params=twins(), ids=lambda twin: twin.NAME)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = request.param.make(tmp_path_factory.mktemp("twin"))
    return replace(request.param.entry(folder), loras={}, precision="fp32")


@pytest.fixture
def watched(model: Any) -> Iterator[Watched]:
    loaded = Watched(model)
    yield loaded
    loaded.pipeline.close()


def requests(pipeline: DiffusersPipeline) -> list[ImageRequest]:
    return [request_for(pipeline, "红色的圆形", 3, steps=2, mode=mode) for mode in MODES]


def test_a_stage_has_what_it_needs_and_nothing_else(watched: Watched) -> None:
    for request in requests(watched.pipeline):
        generate(watched.pipeline, request)
    model = watched.pipeline.model
    assert {model.facts.denoiser, "vae"} < watched.computed.keys()
    stages = {frozenset(needed_by(model, stage, watched.names)) for stage in (ENCODE, DENOISE, DECODE)} | {VAE}
    for name, found in watched.computed.items():
        for present in found:
            assert name in present
            assert present in stages
    assert watched.present == set()


def test_pictures_are_the_same_to_the_bit(watched: Watched, model: Any) -> None:
    whole = registry.load(model, DEVICE, threads=1)
    assert isinstance(whole, DiffusersPipeline)
    for request in requests(whole):
        (one,), (other,) = generate(whole, request), generate(watched.pipeline, request)
        assert np.array_equal(one, other), request.recipe.mode
    whole.close()


@pytest.fixture
def mini() -> Iterator[Watched]:
    loaded = Watched(MINI)
    yield loaded
    loaded.pipeline.close()


@pytest.mark.parametrize("error", [Interrupted("No image is wanted any more."), RuntimeError("out of memory")])
def test_after_a_failure_nothing_is_on_the_device_and_the_next_picture_is_the_same(
    mini: Watched, error: Exception
) -> None:
    request = request_for(mini.pipeline)
    before = generate(mini.pipeline, request)[0]

    def fail(step: int, steps: int) -> None:
        assert mini.present == {"unet"}
        raise error

    with pytest.raises(Exception, match=r"memory|wanted"):
        mini.pipeline.generate([request], fail)
    assert mini.present == set()
    assert np.array_equal(before, generate(mini.pipeline, request)[0])


def test_the_safety_checker_is_there_with_the_autoencoder(mini: Watched) -> None:
    generate(mini.pipeline, request_for(mini.pipeline))
    assert mini.computed["safety_checker"] == {frozenset({"vae", "safety_checker"})}


def test_it_counts_as_its_largest_stage(mini: Watched) -> None:
    whole = registry.load(MINI, DEVICE, threads=1)
    assert sum(mini.pipeline.components.values()) < sum(whole.components.values())
    unet = next(part for name, part in modules(mini.pipeline._pipe).items() if name == "unet")
    assert [*mini.pipeline.components.values()] == [sum(weight.nbytes for weight in unet.parameters())]
    whole.close()


def test_so_it_does_before_it_is_loaded(tmp_path: Any) -> None:
    entry = replace(checkpoints.entry(checkpoints.make(tmp_path, "bert")), offload=True)
    loaded = registry.load(entry, INDEXED, threads=1)
    estimated = registry.model_components(entry, INDEXED)
    assert estimated
    assert estimated.keys() == loaded.components.keys()
    assert sum(estimated.values()) == pytest.approx(sum(loaded.components.values()), rel=0.1)
    loaded.close()


def test_on_a_cpu_it_changes_nothing() -> None:
    """All memory is the host's there."""
    offloaded = replace(MINI, offload=True)
    assert registry.model_components(offloaded, "cpu") == registry.model_components(MINI, "cpu")
    loaded = registry.load(offloaded, "cpu", threads=1)
    assert loaded.components.keys() == (registry.model_components(MINI, "cpu") or {}).keys()
    loaded.close()
