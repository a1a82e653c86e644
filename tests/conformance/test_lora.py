"""LoRAs: each changes its own requests only, and one that cannot be loaded changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from common.catalog.loras import Lora, LoraUse
from common.errors import Interrupted, LoraRefused
from common.storage import sha256
from tests.conformance.test_pipelines import generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RANK = 2
OF_THIS_WORKER = ("is not the catalogue's", "there is no file", "0 .safetensors files")  # another may have the file
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["bert", "clip"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusersPipeline]:
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"), request.param)
    loaded = registry.load(checkpoints.entry(folder), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    yield loaded
    loaded.close()


@pytest.fixture
def make(pipeline: DiffusersPipeline, tmp_path: Path) -> Callable[..., tuple[LoraUse, ...]]:
    """Write a file, list it in the model's catalogue, and give the uses of it."""

    def make(weights: Weights | bytes, weight: float = 1.0, **changes: Any) -> tuple[LoraUse, ...]:
        name = f"lora {len(pipeline.model.loras)}.1"
        file = tmp_path / f"{len(pipeline.model.loras)}.safetensors"
        if isinstance(weights, bytes):
            file.write_bytes(weights)
        else:
            save_file(weights, file)
        entry = Lora(name, str(file), sha256(file.read_bytes()), "none", "", "", file, family="any")
        pipeline.model.loras[name] = replace(entry, **changes)
        return (LoraUse(name=name, weight=weight),)

    return make


def matrices(component: Any, names: tuple[str, ...], seed: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The name of each such layer, with the matrices of a LoRA of RANK for it."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in component.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(names):
            down = torch.randn(RANK, layer.in_features, generator=generator)
            yield name, down, torch.randn(layer.out_features, RANK, generator=generator)


def for_the_unet(pipeline: DiffusersPipeline, seed: int = 1, layout: str = "diffusers") -> Weights:
    found = matrices(pipeline._pipe.unet, ("attn2.to_k", "attn2.to_v"), seed)
    return {key: value for name, *both in found for key, value in _named(layout, "unet", name, *both).items()}


def for_the_text_encoder(pipeline: DiffusersPipeline, layout: str = "diffusers") -> Weights:
    """Under the names in published files: CLIP's have the prefix of an older transformers."""
    found = matrices(pipeline._pipe.text_encoder, ("q_proj", "v_proj", "out_proj", "query", "value"), seed=9)
    component = "te" if layout == "kohya" else "text_encoder"
    inside = "text_model." if type(pipeline._pipe.text_encoder).__name__ == "CLIPTextModel" else ""
    return {
        key: value for name, *both in found for key, value in _named(layout, component, inside + name, *both).items()
    }


def _named(layout: str, component: str, name: str, down: torch.Tensor, up: torch.Tensor) -> Weights:
    if layout == "diffusers":
        return {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
    key = f"lora_{component}_{name.replace('.', '_')}"
    return {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(float(RANK)),
    }


def render(pipeline: DiffusersPipeline, lora: tuple[LoraUse, ...] = (), **fields: Any) -> bytes:
    (pixels,) = generate(pipeline, request_for(pipeline, lora=lora, **fields))
    assert isinstance(pixels, np.ndarray), pixels
    return pixels.tobytes()


def test_a_lora_changes_its_own_requests_and_no_others(pipeline: DiffusersPipeline, make: Any) -> None:
    before = render(pipeline)
    ink, oil = make(for_the_unet(pipeline)), make(for_the_unet(pipeline, seed=2))
    half = (ink[0].model_copy(update={"weight": 0.5}),)
    uses = [ink, oil, half, (*ink, *oil)]
    seen = [render(pipeline, lora) for lora in uses]
    assert len({before, *seen}) == 5
    assert [render(pipeline, lora) for lora in uses] == seen
    assert render(pipeline) == before
    assert render(pipeline, mode="image2image") != render(pipeline, ink, mode="image2image")
    assert render(pipeline) == before
    assert not any("lora" in name for name, _ in pipeline._pipe.unet.named_modules())


def test_an_interruption_leaves_no_lora_active(pipeline: DiffusersPipeline, make: Any) -> None:
    before, ink = render(pipeline), make(for_the_unet(pipeline))

    def interrupt(step: int, steps: int) -> None:
        raise Interrupted("No image is wanted any more.")

    with pytest.raises(Interrupted):
        pipeline.generate([request_for(pipeline, lora=ink)], interrupt)
    assert render(pipeline) == before


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_only_a_clip_text_encoder_takes_weights_for_it(pipeline: DiffusersPipeline, make: Any, layout: str) -> None:
    """Published ones are for CLIP; what was trained with it is for another model than one with a BertModel."""
    before = render(pipeline)
    unet, text = for_the_unet(pipeline, layout=layout), for_the_text_encoder(pipeline, layout=layout)
    usual, with_text = make(for_the_unet(pipeline)), make({**unet, **text})
    alone = render(pipeline, make(unet))
    assert alone == render(pipeline, usual) != before  # whatever the layout
    if _reads_with_clip(pipeline):
        assert render(pipeline, with_text) not in (alone, before)
    else:
        (refused,) = generate(pipeline, request_for(pipeline, lora=with_text))
        assert f"{len(text)} of its {len(unet) + len(text)} weights fit nothing in tiny" in refused.message
    assert render(pipeline) == before


def _reads_with_clip(pipeline: DiffusersPipeline) -> bool:
    return type(pipeline._pipe.text_encoder).__name__ == "CLIPTextModel"


def test_a_lora_that_cannot_be_loaded_is_refused_and_leaves_nothing_active(
    pipeline: DiffusersPipeline, make: Any, tmp_path: Path
) -> None:
    before, good = render(pipeline), for_the_unet(pipeline)
    foreign = {name: torch.zeros(3, 5) for name in good}
    elsewhere = {name.replace("attn2", "attn9"): weight for name, weight in good.items()}
    refused = {
        "is no file of plain tensors": make(b"pickle or worse"),
        "is not the catalogue's": make(good, sha256="0" * 64),
        "there is no file": make(good, path=tmp_path / "nowhere.safetensors"),
        "0 .safetensors files": make(good, path=tmp_path.joinpath("empty")),
        "have other sizes than in tiny": make(foreign),
        "64 of its 64 weights fit nothing in tiny": make(elsewhere),
        "has no LoRA ink": (LoraUse(name="ink"),),
    }
    (tmp_path / "empty").mkdir()
    for reason, lora in refused.items():
        uses = (*make(good), *lora)
        found = generate(pipeline, request_for(pipeline, lora=uses), request_for(pipeline, lora=uses, seed=2))
        assert all(isinstance(one, LoraRefused) and reason in one.message for one in found), found
        assert all(one.retryable == (reason in OF_THIS_WORKER) for one in found)
        assert render(pipeline) == before


def test_a_file_that_was_replaced_since_it_was_read_is_refused(pipeline: DiffusersPipeline, make: Any) -> None:
    before, ink = render(pipeline), make(for_the_unet(pipeline))
    assert render(pipeline, ink) != before
    save_file(for_the_unet(pipeline, seed=2), pipeline.model.loras[ink[0].name].path)
    assert render(pipeline) == before
    (refused,) = generate(pipeline, request_for(pipeline, lora=ink))
    assert "is not the catalogue's" in refused.message


def test_another_model_with_the_same_files_renders_as_before(pipeline: DiffusersPipeline, make: Any) -> None:
    """Equal components are in memory once, but not those that a LoRA changes."""
    assert pipeline.model.source_path
    beside = registry.load(replace(pipeline.model, name="beside", loras={}), DEVICE, threads=1)
    assert isinstance(beside, DiffusersPipeline)
    assert beside._pipe.vae is pipeline._pipe.vae
    before = render(beside)
    text = for_the_text_encoder(pipeline) if _reads_with_clip(pipeline) else {}
    render(pipeline, make({**for_the_unet(pipeline), **text}))
    assert render(beside) == before
    beside.close()


def test_after_a_refused_lora_the_one_before_is_activated_again(pipeline: DiffusersPipeline, make: Any) -> None:
    before, ink = render(pipeline), make(for_the_unet(pipeline))
    first = render(pipeline, ink)
    assert first != before
    (refused,) = generate(pipeline, request_for(pipeline, lora=make(b"no tensors")))
    assert isinstance(refused, LoraRefused)
    assert render(pipeline, ink) == first
