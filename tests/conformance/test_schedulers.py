"""Schedulers: the names and settings of ours, the fast LMS, noise of each row's own, and models of few steps."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import integrate
from torch.utils._python_dispatch import TorchDispatchMode

from common.catalog.catalog import FLOW_SCHEDULERS, SCHEDULERS
from common.catalog.families import families
from tests.conformance.test_pipelines import generate, request_for
from tests.support import checkpoints, parts
from tests.support.devices import DEVICE, LEVELS
from worker.pipelines import registry, schedulers
from worker.pipelines.diffusers_pipeline import DiffusersPipeline
from worker.pipelines.schedulers import LMSDiscreteScheduler, lms_coefficients, scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

OF_2022 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MODES = ("text2image", "image2image", "inpaint")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> DiffusersPipeline:
    folder = checkpoints.make(tmp_path_factory.mktemp("bert"))
    loaded = registry.load(checkpoints.entry(folder, precision="fp32"), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    return loaded


def test_every_name_has_a_scheduler_and_every_class_a_name() -> None:
    assert set(schedulers.SCHEDULERS) == {*SCHEDULERS, *FLOW_SCHEDULERS}
    assert {name for family in families().values() for name in family.schedulers} <= set(schedulers.SCHEDULERS)
    names = schedulers.class_names(SCHEDULERS)
    assert {names[scheduler(name, OF_2022).__class__.__name__] for name in SCHEDULERS} == {*SCHEDULERS} - {"dpm++_sde"}
    assert names["DPMSolverMultistepScheduler"] == "dpm++"
    assert all(hasattr(diffusers, name) for name in names)


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_ddpm_takes_the_timesteps_that_stable_diffusion_was_trained_with(steps: int) -> None:
    """Its config of 2022 lacks the offset: without it the last timestep would be 0, and not 1."""
    ours, ddim = scheduler("ddpm", OF_2022), scheduler("ddim", OF_2022)
    trained = diffusers.DDPMScheduler(**OF_2022, steps_offset=1)
    for each in (ours, ddim, trained):
        each.set_timesteps(steps)
    assert ours.timesteps.tolist() == trained.timesteps.tolist() == ddim.timesteps.tolist()
    assert ours.timesteps[-1] == 1


# LMS


class Operations(TorchDispatchMode):
    """Counts the operations of torch."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def denoised(scheduler: Any, steps: int) -> torch.Tensor:
    """By a model whose output depends on its input and on the timestep."""
    scheduler.set_timesteps(steps, device="cpu")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for time in scheduler.timesteps:
        output = (scheduler.scale_model_input(latents, time) * (1 + time / 500)).sin()
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def test_lms_coefficients_are_the_integrals_of_the_lagrange_basis() -> None:
    lms = scheduler("lms", OF_2022)
    lms.set_timesteps(20)
    sigmas = lms.sigmas.tolist()
    for step, coefficients in enumerate(lms_coefficients(sigmas)):
        nodes = [sigmas[step - back] for back in range(min(step + 1, 4))]
        assert len(coefficients) == len(nodes)
        for node, coefficient in zip(nodes, coefficients, strict=True):

            def basis(at: float, node: float = node, nodes: list[float] = nodes) -> float:
                return float(np.prod([(at - other) / (node - other) for other in nodes if other != node]))

            exact = integrate.quad(basis, sigmas[step], sigmas[step + 1])[0]
            assert coefficient == pytest.approx(exact, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_lms_gives_what_the_lms_of_diffusers_gives(prediction: str, steps: int) -> None:
    config = {**OF_2022, "prediction_type": prediction}
    ours = denoised(scheduler("lms", config), steps)
    theirs = denoised(diffusers.LMSDiscreteScheduler.from_config(config), steps)
    assert (ours - theirs).abs().max() < 1e-4


def test_an_lms_step_takes_few_operations() -> None:
    """diffusers takes 1,713, most of them to integrate; an Euler step takes 19."""
    lms = scheduler("lms", OF_2022)
    lms.set_timesteps(20)
    latents, output = torch.zeros(2, 1, 4, 8, 8)
    with Operations() as operations:
        for time in lms.timesteps:
            latents = lms.step(output, time, lms.scale_model_input(latents, time), return_dict=False)[0]
    assert operations.count / 20 < 7


def test_lms_keeps_the_precision_of_the_latents() -> None:
    lms = scheduler("lms", {**OF_2022, "prediction_type": "v_prediction"})
    lms.set_timesteps(4)
    assert isinstance(lms, LMSDiscreteScheduler)
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    for time in lms.timesteps:
        latents = lms.step(lms.scale_model_input(latents, time), time, latents).prev_sample
    assert latents.dtype == torch.float16


# Noise


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_other_rows_of_a_call_do_not_change_an_image(pipeline: DiffusersPipeline, name: str, mode: str) -> None:
    fields: dict[str, Any] = {"mode": mode, "scheduler": name, "steps": 6}
    prompts = ("红色的圆形", "蓝", "女孩们打开了另一世界的大门，白色背景")
    rows = [request_for(pipeline, prompt, seed, **fields) for seed, prompt in enumerate(prompts)]
    together = generate(pipeline, *rows)
    for row, pixels in zip(rows, together, strict=True):
        assert np.abs(generate(pipeline, row)[0].astype(int) - pixels).max() <= LEVELS


def test_tcd_steps_with_the_eta_of_its_class() -> None:
    """A pipeline passes the eta of DDIM to each scheduler that has one."""
    output, latents = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    stepped = []
    for each in (scheduler("tcd", OF_2022), diffusers.TCDScheduler(**OF_2022)):
        each.set_timesteps(4)
        generator = torch.Generator().manual_seed(1)
        stepped.append(each.step(output, each.timesteps[0], latents, generator=generator).prev_sample)
    assert torch.equal(*stepped)
    extra = diffusers.StableDiffusionPipeline.prepare_extra_step_kwargs
    with_scheduler = type("Pipeline", (), {"scheduler": scheduler("tcd", OF_2022)})()
    assert extra(with_scheduler, None, 0.0).keys() == {"generator"}


@pytest.mark.parametrize("whole", [True, False, None])
@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_the_last_step_ends_where_the_checkpoint_says(name: str, whole: bool | None) -> None:
    """At an alpha of one, or at that of the first timestep, as for Stable Diffusion, whose files may not say it."""
    said = {} if whole is None else {"set_alpha_to_one": whole}
    ours = scheduler(name, {**OF_2022, **said})
    settings = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}[name]
    theirs = type(ours)(**OF_2022, **settings, steps_offset=1, set_alpha_to_one=bool(whole))
    ends = []
    for each in (ours, theirs):
        each.set_timesteps(4)
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for time in each.timesteps:
            latents = each.step(latents.tanh(), time, latents).prev_sample
        ends.append(latents)
    assert torch.equal(*ends)


# Few steps


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A latent consistency model: the guidance is an input of its UNet."""
    folder = checkpoints.make(tmp_path_factory.mktemp("lcm"), "clip")
    parts.unet(time_cond_proj_dim=32).save_pretrained(folder / "unet")
    diffusers.LCMScheduler(**OF_2022).save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index |= {"_class_name": "LatentConsistencyModelPipeline", "scheduler": ["diffusers", "LCMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    return folder


def test_a_latent_consistency_model_renders_what_its_own_pipeline_renders(distilled: Path) -> None:
    entry = checkpoints.entry(distilled, family="stable-diffusion-lcm", token_limit=77, precision="fp32")
    ours = registry.load(entry, DEVICE, threads=1)
    theirs = diffusers.LatentConsistencyModelPipeline.from_pretrained(
        distilled, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs.to(DEVICE).set_progress_bar_config(disable=True)
    fields: dict[str, Any] = {"scheduler": "lcm", "steps": 4}
    rendered = {}
    for guidance in (1.0, 2.0, 8.0):
        (expected,) = theirs(
            "a cat", num_inference_steps=4, guidance_scale=guidance, generator=torch.Generator().manual_seed(3)
        ).images
        one = request_for(ours, "a cat", 3, guidance=guidance, **fields)
        other = request_for(ours, "a red  circle", 4, guidance=guidance, **fields)
        rendered[guidance] = generate(ours, other, one)[1]
        assert np.abs(rendered[guidance].astype(int) - np.asarray(expected)).max() <= LEVELS
    assert len({pixels.tobytes() for pixels in rendered.values()}) == 3
    weighted = generate(ours, request_for(ours, "(a:1.5) cat", 3, guidance=8.0, **fields))[0]
    assert not np.array_equal(weighted, rendered[8.0])


@pytest.mark.parametrize("name", ["lcm", "tcd"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_few_steps_render_what_a_plain_pipeline_renders(
    pipeline: DiffusersPipeline, name: str, guidance: float
) -> None:
    fields: dict[str, Any] = {"scheduler": name, "steps": 4, "guidance": guidance}
    ours = generate(pipeline, request_for(pipeline, "红色的圆形", 3, negative_prompt="黑", **fields))[0]
    theirs = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}[name](**OF_2022, steps_offset=1)
    plain = diffusers.StableDiffusionPipeline(
        **{**pipeline._pipe.components, "scheduler": theirs, "safety_checker": None}, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    (expected,) = plain(
        "红色的圆形",
        negative_prompt="黑",
        guidance_scale=guidance,
        num_inference_steps=4,
        eta=0.3,
        generator=torch.Generator().manual_seed(3),
    ).images
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= LEVELS
