"""What only some families with a UNet have: one that reads masks, two text encoders, a VAE that overflows in fp16.

What all families have in common is in `test_twins`.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SchedulerMixin

from common.errors import ModelRefused
from tests.conformance.test_pipelines import generate, gradient, request_for, right_half
from tests.support.devices import DEVICE, LEVELS
from tests.support.twins import inpainting, plain, sdxl, stable_diffusion_2
from worker.checkpoints import layout
from worker.pipelines import registry
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

Load = Callable[[ModuleType], DiffusersPipeline]
SIDE = 64


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModuleType], Path]:
    @cache
    def folder(twin: ModuleType) -> Path:
        made: Path = twin.make(tmp_path_factory.mktemp("twin"))
        return made

    return folder


@pytest.fixture(scope="module")
def load(folders: Callable[[ModuleType], Path]) -> Iterator[Load]:
    loaded = dict[ModuleType, DiffusersPipeline]()

    def one(twin: ModuleType) -> DiffusersPipeline:
        if twin not in loaded:
            pipeline = registry.load(twin.entry(folders(twin)), DEVICE, threads=1)
            assert isinstance(pipeline, DiffusersPipeline)
            loaded[twin] = pipeline
        return loaded[twin]

    yield one
    for pipeline in loaded.values():
        pipeline.close()
    plain.load.cache_clear()


def farthest(one: Any, other: Any) -> int:
    return int(np.abs(one.astype(int) - other).max())


# A UNet that reads masks


def test_inside_the_masks_it_paints_what_plain_diffusers_paints(load: Load, folders: Any) -> None:
    """Each row with its own source and mask; outside the masks stay the sources' own pixels."""
    pipeline, mask = load(inpainting), right_half(SIDE, SIDE)
    pictures = [(gradient(SIDE, SIDE), mask), (gradient(SIDE, SIDE, upside_down=True), ~mask)]
    requests = [
        request_for(pipeline, seed=seed, mode="inpaint", strength=1.0, source=source, mask=masked)
        for seed, (source, masked) in enumerate(pictures)
    ]
    rendered = generate(pipeline, *requests)
    for pixels, request, (source, masked) in zip(rendered, requests, pictures, strict=True):
        theirs = inpainting.reference(folders(inpainting), request.recipe, request.seed, source, masked)
        assert farthest(pixels[masked], theirs[masked]) <= LEVELS
        assert np.array_equal(pixels[~masked], source[~masked])


def test_what_is_outside_the_mask_is_read(load: Load) -> None:
    """Another source changes what is painted inside the mask, for the UNet sees it; under a white mask it does not."""
    pipeline, mask = load(inpainting), right_half(SIDE, SIDE)
    sources = gradient(SIDE, SIDE), gradient(SIDE, SIDE, upside_down=True)
    for masked, is_read in ((mask, True), (np.ones_like(mask), False)):
        one, other = generate(
            pipeline,
            *(request_for(pipeline, mode="inpaint", strength=1.0, source=one, mask=masked) for one in sources),
        )
        assert (farthest(one[mask], other[mask]) > LEVELS) == is_read


@pytest.mark.parametrize(
    ("twin", "channels", "reason"),
    [
        (stable_diffusion_2, 8, "unet is an InstructPix2Pix (8 input channels)"),
        (stable_diffusion_2, 9, "whose family is stable-diffusion-inpaint"),
        (stable_diffusion_2, 5, "a UNet of 5 input channels, where the family stable-diffusion has 4"),
        (inpainting, 4, "a UNet of 4 input channels, where the family stable-diffusion-inpaint has 9"),
        (sdxl, 8, "InstructPix2Pix"),
    ],
)
def test_a_unet_of_another_kind_is_refused_by_name(
    folders: Any, tmp_path: Path, twin: ModuleType, channels: int, reason: str
) -> None:
    folder = shutil.copytree(folders(twin), tmp_path / "other")
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "in_channels": channels}), "utf-8")
    with pytest.raises(ModelRefused) as refusal:
        layout.find(twin.entry(folder))
    assert reason in refusal.value.message


@pytest.mark.parametrize(
    "pipeline_class", ["StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInpaintPipeline"]
)
def test_a_pipeline_of_another_kind_is_refused_by_name(folders: Any, tmp_path: Path, pipeline_class: str) -> None:
    folder = shutil.copytree(folders(sdxl), tmp_path / "other")
    index = {**layout.read_index(folder), "_class_name": pipeline_class}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelRefused, match=pipeline_class):
        layout.find(sdxl.entry(folder))


# v-prediction


@pytest.mark.parametrize("name", stable_diffusion_2.entry(Path("nowhere")).facts.schedulers)
def test_every_scheduler_knows_what_the_unet_predicts(load: Load, folders: Any, name: str) -> None:
    """Against plain diffusers with that scheduler, of the checkpoint's own configuration."""
    pipeline = load(stable_diffusion_2)
    ours = request_for(pipeline, scheduler=name, steps=4)
    (pixels,) = generate(pipeline, ours)
    used = pipeline._pipe.scheduler
    assert used.config.prediction_type == "v_prediction"
    pipe = plain.load(folders(stable_diffusion_2))
    before, pipe.scheduler = pipe.scheduler, type(used).from_config(used.config)
    try:
        theirs = stable_diffusion_2.reference(folders(stable_diffusion_2), ours.recipe, ours.seed)
    finally:
        pipe.scheduler = before
    assert farthest(pixels, theirs) <= LEVELS


# Two text encoders


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_weights_change_their_own_image_only(load: Load, field: str) -> None:
    pipeline = load(sdxl)
    texts = ("红色的圆形", "(红色:1.5)的圆形", "(红色:0.5)的圆形", "(红色:1.0)的圆形")
    usual, *weighted = generate(pipeline, *(request_for(pipeline, **{field: text}) for text in texts))
    assert len({pixels.tobytes() for pixels in (usual, *weighted)}) == 3
    assert usual.tobytes() == weighted[-1].tobytes()
    alone = [request_for(pipeline, **{field: text}) for text in ("红色的圆形",) * 4]
    assert generate(pipeline, *alone)[0].tobytes() == usual.tobytes()


def test_weights_are_applied_to_the_outputs_of_both_encoders(load: Load) -> None:
    pipeline = load(sdxl)
    recipes = [request_for(pipeline, text).recipe for text in ("红色", "(红色:2)", "")]
    rows = pipeline._family.encode(pipeline._pipe, recipes, False)["prompt_embeds"]
    for usual, weighted, empty in (half.unbind() for half in rows.chunk(2, -1)):
        assert torch.allclose(weighted[1:7], empty[1:7] + 2 * (usual[1:7] - empty[1:7]), atol=1e-4)
        assert torch.equal(weighted[7:], usual[7:])
        assert not torch.allclose(weighted[1:7], usual[1:7], atol=1e-2)


def test_no_negative_prompt_is_zeros_only_where_the_model_says_so(folders: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(sdxl), tmp_path / "other")
    index = {**layout.read_index(folder), "force_zeros_for_empty_prompt": False}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    pipeline = registry.load(sdxl.entry(folder), DEVICE, threads=1)
    request = request_for(pipeline)
    (pixels,) = generate(pipeline, request)
    pipeline.close()
    assert farthest(pixels, sdxl.reference(folder, request.recipe, request.seed)) <= LEVELS
    assert farthest(pixels, sdxl.reference(folders(sdxl), request.recipe, request.seed)) > LEVELS


@pytest.mark.parametrize("name", sdxl.entry(Path("nowhere")).facts.schedulers)
def test_a_shortened_schedule_begins_where_it_does_of_itself(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its pipeline tells the scheduler to begin at step 0, which is that of the shortened schedule."""
    pipeline = load(sdxl)
    request = request_for(pipeline, mode="inpaint", strength=0.5, steps=6, scheduler=name)
    (told,) = generate(pipeline, request)
    for scheduler_class in SchedulerMixin.__subclasses__():
        if hasattr(scheduler_class, "set_begin_index"):
            monkeypatch.setattr(scheduler_class, "set_begin_index", lambda self, begin_index=0: None)
    (by_itself,) = generate(pipeline, request)
    assert farthest(told, by_itself) <= LEVELS


# A VAE that fp16 is too small for


@pytest.mark.parametrize(("forced", "computed_in"), [(True, torch.float32), (False, torch.float16)])
def test_a_vae_that_overflows_decodes_and_encodes_in_fp32(
    folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool, computed_in: torch.dtype
) -> None:
    pipeline = registry.load(sdxl.entry(shutil.copytree(folders(sdxl), tmp_path / "own")), DEVICE, threads=1)
    assert isinstance(pipeline, DiffusersPipeline)
    family, pipe = pipeline._family, pipeline._pipe
    vae, seen = pipe.vae.to(torch.float16), list[torch.dtype]()
    vae.register_to_config(force_upcast=forced)
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}

    def seeing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(given: torch.Tensor, **named: Any) -> Any:
            seen.append(given.dtype)
            return method(given, **named)

        return call

    for name in ("encode", "decode"):
        monkeypatch.setattr(vae, name, seeing(getattr(vae, name)))
    with torch.no_grad():
        latents = family.to_latents(pipe, torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float16, device=DEVICE))
        family.to_pixels(pipe, latents.half(), SIDE, SIDE)
    assert seen == [computed_in] * 2
    assert vae.dtype == torch.float16
    assert all(torch.equal(weights[name], weight) for name, weight in vae.state_dict().items())
    pipeline.close()
