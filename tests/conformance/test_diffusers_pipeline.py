"""How DiffusersPipeline uses diffusers: no wasted work, the fastest attention, images checked on the device."""

import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.test_pipelines import generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE, LEVELS
from worker.pipelines import registry, safety_checker
from worker.pipelines.base import RenderedImage
from worker.pipelines.device import resolve
from worker.pipelines.diffusers_pipeline import DiffusersPipeline
from worker.pipelines.safety_checker import clip_input

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("tiny"), "bert")


@pytest.fixture
def pipeline(folder: Path) -> Iterator[DiffusersPipeline]:
    loaded = registry.load(checkpoints.entry(folder, precision="fp32"), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    yield loaded
    loaded.close()


@pytest.fixture
def unet_batches(pipeline: DiffusersPipeline) -> list[int]:
    """The number of latents in each call of the UNet."""
    counts: list[int] = []
    pipeline._pipe.unet.register_forward_pre_hook(lambda unet, given: counts.append(len(given[0])))
    return counts


@pytest.mark.parametrize(("guidance", "latents"), [(0.0, 3), (1.0, 3), (1.1, 6), (7.5, 6)])
def test_without_guidance_the_unet_gets_half_the_latents(
    pipeline: DiffusersPipeline, unet_batches: list[int], guidance: float, latents: int
) -> None:
    generate(pipeline, *(request_for(pipeline, seed=seed, guidance=guidance, scheduler="ddim") for seed in range(3)))
    assert unet_batches == [latents] * 4


def test_the_batch_size_is_found_by_doubling(pipeline: DiffusersPipeline, unet_batches: list[int]) -> None:
    assert pipeline.find_batch_size(0) in (1, 2, 4, 8, 16, 32)
    counts = list(dict.fromkeys(unet_batches))
    assert counts == [2 * 2**power for power in range(len(counts))]


def test_attention_is_torchs_own(pipeline: DiffusersPipeline) -> None:
    used = {type(processor).__name__ for processor in pipeline._pipe.unet.attn_processors.values()}
    assert used == {"AttnProcessor2_0"}
    assert pipeline._pipe.text_encoder.config._attn_implementation == "sdpa"


def test_pixels_are_contiguous(pipeline: DiffusersPipeline) -> None:
    (image,) = pipeline.generate([request_for(pipeline)], lambda step, steps: None)
    assert isinstance(image, RenderedImage)
    assert image.pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (96, 64), (64, 200), (37, 41), (30, 30)])
def test_the_safety_checkers_input_is_what_its_extractor_gives(
    pipeline: DiffusersPipeline, size: tuple[int, int]
) -> None:
    extractor = pipeline._pipe.feature_extractor
    pixels = torch.stack([_image(size, seed) for seed in range(3)])
    ours = clip_input(pixels.to(DEVICE), extractor).cpu()
    theirs = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values
    assert ours.shape == theirs.shape
    levels = (ours - theirs).abs() * 255 * torch.tensor(extractor.image_std).view(3, 1, 1)
    assert levels.max() < 1.01


def test_the_safety_checker_flags_what_it_flags_with_its_extractor(pipeline: DiffusersPipeline) -> None:
    """With a threshold that about half of the images pass."""
    extractor, checker = pipeline._pipe.feature_extractor, pipeline._pipe.safety_checker
    pixels = torch.stack([_image((96, 64), seed) for seed in range(24)])
    inputs = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values.to(DEVICE)
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model(inputs)[1])
        likeness = torch.nn.functional.cosine_similarity(embedded[:, None], checker.concept_embeds[None], dim=2)
    checker.concept_embeds_weights.data.fill_(likeness.amax(1).median())
    flags = checker(images=pixels.to(DEVICE, copy=True), clip_input=inputs)[1]
    assert 8 <= sum(flags) <= 16
    verdicts = safety_checker.judge(pipeline._pipe, pixels.to(DEVICE, copy=True))
    assert [(verdict.flagged, verdict.unchecked) for verdict in verdicts] == [(flag, False) for flag in flags]


def test_each_flag_is_that_of_diffusers_and_follows_from_the_score(
    pipeline: DiffusersPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a thousandth of a threshold, which diffusers rounds to, and for images of special care."""
    pixels = torch.stack([_image((96, 64), seed) for seed in range(24)]).to(DEVICE)
    checker, inputs = pipeline._pipe.safety_checker, clip_input(pixels, pipeline._pipe.feature_extractor)
    monkeypatch.setattr("worker.pipelines.safety_checker.clip_input", lambda *given: inputs)
    embedded = checker.visual_projection(checker.vision_model(inputs)[1]).detach()
    likeness = torch.nn.functional.cosine_similarity(embedded[:, None], checker.concept_embeds[None], dim=2)
    seen = set[tuple[bool, float]]()
    for image, concept in enumerate((3, 16, 0, 9) * 6):
        checker.special_care_embeds_weights.data.fill_(-2 if image % 3 == 0 else 1)
        checker.concept_embeds_weights.data.fill_(1)
        checker.concept_embeds_weights.data[concept] = likeness[image, concept] - (image - 12) * 0.0001
        flags = checker(images=pixels.clone(), clip_input=inputs)[1]
        verdicts = safety_checker.judge(pipeline._pipe, pixels)
        assert [verdict.flagged for verdict in verdicts] == flags
        assert [(verdict.score or 0) > 0 for verdict in verdicts] == flags
        assert verdicts[image].concept == concept
        seen.add((flags[image], verdicts[image].score or 0))
    assert {(False, 0), (True, 0.001), (False, -0.001), (True, 0.01), (True, 0.011)} <= seen


COMPARED = [f"{concepts}_embeds{part}" for concepts in ("concept", "special_care") for part in ("", "_weights")]


@pytest.mark.parametrize("tensor", ["visual_projection.weight", *COMPARED])
def test_what_the_safety_checker_cannot_judge_is_flagged(pipeline: DiffusersPipeline, tensor: str) -> None:
    """NaN exceeds no threshold, so the safety checker itself finds nothing wrong."""
    weights = pipeline._pipe.safety_checker.get_parameter(tensor).data
    before = weights.clone()
    weights[0] = torch.nan
    try:
        (image,) = pipeline.generate([request_for(pipeline)], lambda step, steps: None)
    finally:
        weights.copy_(before)
    assert isinstance(image, RenderedImage)
    assert (image.flagged, image.unchecked, image.score, image.concept) == (True, True, None, None)


def test_only_the_image_that_cannot_be_judged_is_unchecked(
    pipeline: DiffusersPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.stack([_image((96, 64), seed) for seed in range(3)])
    inputs = clip_input(pixels, pipeline._pipe.feature_extractor)
    inputs[1, 0, 0, 0] = torch.nan
    monkeypatch.setattr("worker.pipelines.safety_checker.clip_input", lambda *given: inputs.to(DEVICE))
    pipeline._pipe.safety_checker.concept_embeds_weights.data.fill_(1)
    verdicts = safety_checker.judge(pipeline._pipe, pixels.to(DEVICE, copy=True))
    assert [verdict.unchecked for verdict in verdicts] == [False, True, False]
    assert [verdict.flagged for verdict in verdicts] == [False, True, False]


def test_of_an_inpainted_image_the_safety_checker_judges_what_is_kept_of_the_source_too(
    pipeline: DiffusersPipeline,
) -> None:
    """That is where a user could bring what must not be stored."""
    sources = [_image((pipeline.model.height, pipeline.model.width), seed).numpy() for seed in range(2)]
    requests = [request_for(pipeline, mode="inpaint", strength=1.0, source=source) for source in sources]
    images = pipeline.generate(requests, lambda step, steps: None)
    assert all(isinstance(image, RenderedImage) for image in images)
    pixels = torch.stack([torch.from_numpy(image.pixels) for image in images])
    verdicts = safety_checker.judge(pipeline._pipe, pixels.to(DEVICE))
    assert [(image.score, image.concept) for image in images] == [(one.score, one.concept) for one in verdicts]
    assert verdicts[0].score != verdicts[1].score


def test_an_unusual_extractor_is_used_as_it_is(pipeline: DiffusersPipeline) -> None:
    extractor = pipeline._pipe.feature_extractor
    pixels = torch.stack([_image((64, 64), seed) for seed in range(2)])
    extractor.resample = 2
    theirs = extractor(list(pixels.numpy()), return_tensors="pt").pixel_values
    assert torch.equal(clip_input(pixels, extractor), theirs)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_cpu_renders_in_full_precision_whatever_the_catalogue_says(
    folder: Path, precision: str, dtype: torch.dtype
) -> None:
    loaded = registry.load(checkpoints.entry(folder, precision=precision), "cpu", threads=1)
    assert loaded.details == {"precision": "fp32"}
    assert loaded._pipe.unet.dtype == torch.float32  # type: ignore[attr-defined]
    loaded.close()


def test_component_sizes_estimated_from_files_match_those_in_memory(pipeline: DiffusersPipeline, folder: Path) -> None:
    of_files = registry.model_components(pipeline.model, "cpu")  # which are in fp32 too
    assert {name: pytest.approx(size, rel=0.1) for name, size in of_files.items()} == pipeline.components
    assert registry.model_components(replace(pipeline.model, source_path=None), "cpu") is None


def test_close_frees_the_components_at_once(folder: Path) -> None:
    loaded = registry.load(checkpoints.entry(folder), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    components = [weakref.ref(loaded._pipe.unet), weakref.ref(loaded._pipe.text_encoder)]
    loaded.close()
    assert [component() for component in components] == [None, None]


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_cuda_resolves_to_its_first_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Torch takes "cuda" for the first device in most places, and raises where memory is limited."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve(device) == {"cuda:1": "cuda:1"}.get(device, "cuda:0")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_compiled_model_renders_the_same_and_its_details_say_so(pipeline: DiffusersPipeline, folder: Path) -> None:
    compiled = registry.load(checkpoints.entry(folder, precision="fp32", compile=True), DEVICE, threads=1)
    assert compiled.details == {"precision": "fp32", "compiled": True}
    requests = [request_for(pipeline, seed=seed) for seed in range(3)]
    for ours, theirs in zip(generate(compiled, *requests), generate(pipeline, *requests), strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= LEVELS
    compiled.close()


def _image(size: tuple[int, int], seed: int) -> Any:
    """Blocks and grain: edges that a filter blurs."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 2, (size[0] // 8 + 1, size[1] // 8 + 1, 3), generator=generator) * 200
    blocks = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]]
    return (blocks + torch.randint(0, 56, (*size, 3), generator=generator)).to(torch.uint8)
