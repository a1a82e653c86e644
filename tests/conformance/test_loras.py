"""LoRAs: each does what it is for, to its own strokes only; and what cannot be loaded leaves nothing behind."""

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
from tests.conformance.test_painters import pictures, stroke
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RANK = 2
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=["bert", "clip"])
def paints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StableDiffusion]:
    folder = checkpoints.make(tmp_path_factory.mktemp("tiny"), request.param)
    loaded = registry.load(checkpoints.entry(folder), DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    yield loaded
    loaded.close()


@pytest.fixture
def make(paints: StableDiffusion, tmp_path: Path) -> Callable[..., tuple[LoraUse, ...]]:
    """Put a file into the catalogue, and take it."""

    def make(weights: Weights | bytes, weight: float = 1.0, **changes: Any) -> tuple[LoraUse, ...]:
        name = f"lora {len(paints.model.loras)}.1"
        file = tmp_path / f"{len(paints.model.loras)}.safetensors"
        if isinstance(weights, bytes):
            file.write_bytes(weights)
        else:
            save_file(weights, file)
        entry = Lora(name, str(file), sha256(file.read_bytes()), "none", "", "", file, family="any")
        paints.model.loras[name] = replace(entry, **changes)
        return (LoraUse(name=name, weight=weight),)

    return make


def pairs(part: Any, names: tuple[str, ...], seed: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """For each of its layers that is called so: down to a few numbers, and up again."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in part.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(names):
            down = torch.randn(RANK, layer.in_features, generator=generator)
            yield name, down, torch.randn(layer.out_features, RANK, generator=generator)


def for_the_unet(of: StableDiffusion, seed: int = 1, layout: str = "diffusers") -> Weights:
    found = pairs(of._pipe.unet, ("attn2.to_k", "attn2.to_v"), seed)
    return {key: value for name, *both in found for key, value in _named(layout, "unet", name, *both).items()}


def for_the_text_encoder(of: StableDiffusion, layout: str = "diffusers") -> Weights:
    """Under the names that such files have: CLIP's were once those of a part of it."""
    found = pairs(of._pipe.text_encoder, ("q_proj", "v_proj", "out_proj", "query", "value"), seed=9)
    part = "te" if layout == "kohya" else "text_encoder"
    inside = "text_model." if type(of._pipe.text_encoder).__name__ == "CLIPTextModel" else ""
    return {key: value for name, *both in found for key, value in _named(layout, part, inside + name, *both).items()}


def _named(layout: str, part: str, name: str, down: torch.Tensor, up: torch.Tensor) -> Weights:
    if layout == "diffusers":
        return {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    key = f"lora_{part}_{name.replace('.', '_')}"
    return {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": torch.tensor(float(RANK)),
    }


def painted(of: StableDiffusion, lora: tuple[LoraUse, ...] = (), **fields: Any) -> bytes:
    (picture,) = pictures(of, stroke(of, lora=lora, **fields))
    assert isinstance(picture, np.ndarray), picture
    return picture.tobytes()


def test_it_changes_its_own_strokes_and_no_others(paints: StableDiffusion, make: Any) -> None:
    before = painted(paints)
    ink, oil = make(for_the_unet(paints)), make(for_the_unet(paints, seed=2))
    half = (ink[0].model_copy(update={"weight": 0.5}),)
    uses = [ink, oil, half, (*ink, *oil)]
    seen = [painted(paints, lora) for lora in uses]
    assert len({before, *seen}) == 5
    assert [painted(paints, lora) for lora in uses] == seen
    assert painted(paints) == before
    assert painted(paints, mode="image2image") != painted(paints, ink, mode="image2image")
    assert painted(paints) == before
    assert not any("lora" in name for name, _ in paints._pipe.unet.named_modules())


def test_an_interruption_leaves_nothing_of_it(paints: StableDiffusion, make: Any) -> None:
    before, ink = painted(paints), make(for_the_unet(paints))

    def interrupt(step: int, steps: int) -> None:
        raise Interrupted("Nobody wants it any more.")

    with pytest.raises(Interrupted):
        paints.paint([stroke(paints, lora=ink)], interrupt)
    assert painted(paints) == before


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_what_is_for_the_text_encoder_is_taken_where_that_can_be(
    paints: StableDiffusion, make: Any, layout: str
) -> None:
    """By CLIPTextModel. A BertModel goes without, and the UNet's part counts all the same."""
    before = painted(paints)
    unet, text = for_the_unet(paints, layout=layout), for_the_text_encoder(paints, layout=layout)
    usual = for_the_unet(paints)
    alone, both = painted(paints, make(unet)), painted(paints, make({**unet, **text}))
    takes_it = type(paints._pipe.text_encoder).__name__ == "CLIPTextModel"
    assert (alone != both) == takes_it
    assert before not in (alone, both)
    assert alone == painted(paints, make(usual))  # whatever the layout
    assert painted(paints) == before


def test_what_cannot_be_loaded_is_refused_and_leaves_nothing_behind(
    paints: StableDiffusion, make: Any, tmp_path: Path
) -> None:
    before, good = painted(paints), for_the_unet(paints)
    foreign = {name: torch.zeros(3, 5) for name in good}
    elsewhere = {name.replace("attn2", "attn9"): weight for name, weight in good.items()}
    refused = {
        "is no file of plain tensors": make(b"pickle or worse"),
        "is not the catalogue's": make(good, sha256="0" * 64),
        "there is no file": make(good, path=tmp_path / "nowhere.safetensors"),
        "0 .safetensors files": make(good, path=tmp_path.joinpath("empty")),
        "it does not fit tiny": make(foreign),
        "it does not fit": make(elsewhere),
        "has no LoRA ink": (LoraUse(name="ink"),),
    }
    (tmp_path / "empty").mkdir()
    for reason, lora in refused.items():
        uses = (*make(good), *lora)
        found = pictures(paints, stroke(paints, lora=uses), stroke(paints, lora=uses, seed=2))
        assert [type(one) for one in found] == [LoraRefused] * 2
        assert reason in found[0].message
        assert painted(paints) == before


def test_a_model_beside_it_that_has_the_same_files_paints_as_it_did(paints: StableDiffusion, make: Any) -> None:
    """Equal parts are in memory once, but not those that a LoRA is put on."""
    assert paints.model.source_path
    beside = registry.load(replace(paints.model, name="beside", loras={}), DEVICE, threads=1)
    assert isinstance(beside, StableDiffusion)
    assert beside._pipe.vae is paints._pipe.vae
    before = painted(beside)
    painted(paints, make({**for_the_unet(paints), **for_the_text_encoder(paints)}))
    assert painted(beside) == before
    beside.close()


def test_after_a_refused_one_the_one_before_is_put_on_again(paints: StableDiffusion, make: Any) -> None:
    before, ink = painted(paints), make(for_the_unet(paints))
    first = painted(paints, ink)
    assert first != before
    (refused,) = pictures(paints, stroke(paints, lora=make(b"no tensors")))
    assert isinstance(refused, LoraRefused)
    assert painted(paints, ink) == first
