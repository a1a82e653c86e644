"""How diffusers is put to use: no work for nothing, attention at its fastest, pictures checked where they are."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.test_painters import pictures, stroke
from tests.support import checkpoints
from tests.support.devices import DEVICE, LEVELS
from worker.pipelines import registry
from worker.pipelines.base import RenderedImage
from worker.pipelines.device import choose
from worker.pipelines.stable_diffusion import StableDiffusion, clip_input

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture
def paints(folder: Path) -> Iterator[StableDiffusion]:
    loaded = registry.load(checkpoints.entry(folder, precision="fp32"), DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    yield loaded
    loaded.close()


@pytest.fixture
def drawn_at_once(paints: StableDiffusion) -> list[int]:
    """How many latents the UNet got in each of its calls."""
    counts: list[int] = []
    paints._pipe.unet.register_forward_pre_hook(lambda unet, given: counts.append(len(given[0])))
    return counts


@pytest.mark.parametrize(("guidance", "latents"), [(0.0, 3), (1.0, 3), (1.1, 6), (7.5, 6)])
def test_without_guidance_only_half_is_drawn(
    paints: StableDiffusion, drawn_at_once: list[int], guidance: float, latents: int
) -> None:
    pictures(paints, *(stroke(paints, seed=seed, guidance=guidance, scheduler="ddim") for seed in range(3)))
    assert drawn_at_once == [latents] * 4


def test_capacity_is_found_by_painting_more_and_more(paints: StableDiffusion, drawn_at_once: list[int]) -> None:
    assert paints.find_capacity(0) in (1, 2, 4, 8, 16, 32)
    counts = list(dict.fromkeys(drawn_at_once))
    assert counts == [2 * 2**power for power in range(len(counts))]


def test_attention_is_torchs_own(paints: StableDiffusion) -> None:
    used = {type(processor).__name__ for processor in paints._pipe.unet.attn_processors.values()}
    assert used == {"AttnProcessor2_0"}
    assert paints._pipe.text_encoder.config._attn_implementation == "sdpa"


def test_pictures_lie_as_files_want_them(paints: StableDiffusion) -> None:
    (picture,) = paints.paint([stroke(paints)], lambda step, steps: None)
    assert isinstance(picture, RenderedImage)
    assert picture.pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (96, 64), (64, 200), (37, 41), (30, 30)])
def test_the_safety_checker_sees_on_the_device_what_it_saw_before(
    paints: StableDiffusion, size: tuple[int, int]
) -> None:
    extractor = paints._pipe.feature_extractor
    pixels = torch.stack([_picture(size, seed) for seed in range(3)])
    ours = clip_input(pixels.to(DEVICE), extractor).cpu()
    theirs = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values
    assert ours.shape == theirs.shape
    levels = (ours - theirs).abs() * 255 * torch.tensor(extractor.image_std).view(3, 1, 1)
    assert levels.max() < 1.01


def test_the_safety_checker_says_on_the_device_what_it_said_before(paints: StableDiffusion) -> None:
    """With thresholds that it passes for about half of the pictures."""
    extractor, checker = paints._pipe.feature_extractor, paints._pipe.safety_checker
    pixels = torch.stack([_picture((96, 64), seed) for seed in range(24)])
    seen = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values.to(DEVICE)
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model(seen)[1])
        likeness = torch.nn.functional.cosine_similarity(embedded[:, None], checker.concept_embeds[None], dim=2)
    checker.concept_embeds_weights.data.fill_(likeness.amax(1).median())
    said = checker(images=pixels.to(DEVICE, copy=True), clip_input=seen)[1]
    assert 8 <= sum(said) <= 16
    assert paints._flags(pixels.to(DEVICE, copy=True)) == said


def test_an_unusual_extractor_does_its_work_itself(paints: StableDiffusion) -> None:
    extractor = paints._pipe.feature_extractor
    pixels = torch.stack([_picture((64, 64), seed) for seed in range(2)])
    extractor.resample = 2
    theirs = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values
    assert torch.equal(clip_input(pixels, extractor), theirs)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_cpu_paints_in_full_precision_whatever_the_catalogue_says(
    folder: Path, precision: str, dtype: torch.dtype
) -> None:
    loaded = registry.load(checkpoints.entry(folder, precision=precision), "cpu", threads=1)
    assert loaded.details == {"precision": "fp32"}
    assert loaded._pipe.unet.dtype == torch.float32  # type: ignore[attr-defined]
    loaded.close()


def test_the_size_of_a_model_is_that_of_its_parts(paints: StableDiffusion, folder: Path) -> None:
    of_files = registry.model_components(paints.model, "cpu")  # which are in fp32 too
    assert {name: pytest.approx(size, rel=0.1) for name, size in of_files.items()} == paints.parts
    assert registry.model_components(replace(paints.model, source_path=None), "cpu") is None


def test_what_is_closed_leaves_the_memory_at_once(folder: Path) -> None:
    loaded = registry.load(checkpoints.entry(folder), DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    parts = [weakref.ref(loaded._pipe.unet), weakref.ref(loaded._pipe.text_encoder)]
    loaded.close()
    assert [part() for part in parts] == [None, None]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_of_several_accelerators_one_is_named(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Torch takes "cuda" for the first one in most places, and for an error where the memory is limited."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose(device) == {"cuda:1": "cuda:1"}.get(device, "cuda:0")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_compiled_model_paints_the_same_and_says_that_it_is_compiled(paints: StableDiffusion, folder: Path) -> None:
    compiled = registry.load(checkpoints.entry(folder, precision="fp32", compile=True), DEVICE, threads=1)
    assert compiled.details == {"precision": "fp32", "compiled": True}
    strokes = [stroke(paints, seed=seed) for seed in range(3)]
    for ours, theirs in zip(pictures(compiled, *strokes), pictures(paints, *strokes), strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= LEVELS
    compiled.close()


def _picture(size: tuple[int, int], seed: int) -> Any:
    """Blocks and grain: edges that a filter smears."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 2, (size[0] // 8 + 1, size[1] // 8 + 1, 3), generator=generator) * 200
    blocks = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]]
    return (blocks + torch.randint(0, 56, (*size, 3), generator=generator)).to(torch.uint8)
