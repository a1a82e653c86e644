"""Compares a model of the farm with plain diffusers on this device, and measures it. Imports torch and diffusers.

Plain diffusers is `DiffusionPipeline.from_pretrained` of the same folder with the same scheduler, called as the model's
card says: nothing of the farm's code for prompts, steps and pixels. One of the two is in memory at a time.
"""

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from common.catalog.catalog import Catalog, Model
from common.errors import Error, Invalid, ModelRefused, OutOfMemory, RenderFailed
from common.recipes.recipe import Draft, Recipe, resolve
from worker.checkpoints import layout
from worker.checkpoints.loader import DTYPES, precision
from worker.models import sentence
from worker.pipelines import assembly, registry
from worker.pipelines import device as torch_device
from worker.pipelines.base import DeviceLost, ImageRequest, Pipeline, RenderedImage
from worker.pipelines.schedulers import scheduler

Report = Callable[[str, int, int], None]  # phase, steps done, steps in all
Pixels = NDArray[np.uint8]

PROMPT, SEED = "红色的圆形", 1
HOME = Path(__file__).resolve().parents[2]


def prove(model: Model, device: str, threads: int | None, steps: int | None, report: Report) -> dict[str, Any]:
    """The record of a model with its files on this host. `steps`: in place of the model's own.

    Levels are of 256; the images of the measurements are discarded. Raises Invalid, or RenderFailed: the model is
    refused, does not fit into memory, or plain diffusers cannot draw it.
    """
    recipe = _recipe(model, steps)
    _require_text2image(model)
    try:
        measured, image = _measure(model, device, threads, recipe, report)
        if image.flagged:  # its pixels are black
            image = _first_image(replace(model, safety_checker=False), device, threads, recipe, report)
    except DeviceLost as error:
        raise ModelRefused(sentence("prove_device_lost", model=model.name, error=error)) from error
    plain = _draw_by_plain(model, torch.device(torch_device.resolve(device)), recipe, report)
    levels = np.abs(image.pixels.astype(int) - plain)
    return {
        **_versions(model, device, threads),
        **{name: getattr(recipe, name) for name in ("width", "height", "steps", "scheduler", "guidance")},
        "seed": SEED,
        "levels_max": int(levels.max()),
        "levels_mean": round(float(levels.mean()), 4),
        **measured,
    }


def _recipe(model: Model, steps: int | None) -> Recipe:
    """The model's defaults, as for a job that says nothing."""
    alone = Catalog({model.name: model}, model.name, model.name)
    return resolve(Draft.model_validate({"prompt": PROMPT, "steps": steps}), alone, model.name, SEED)


def _versions(model: Model, device: str, threads: int | None) -> dict[str, Any]:
    described = registry.describe(device, threads)
    return {
        "model": model.name,
        "source": model.source,
        "revision": model.revision,
        "device": described["name"],
        "kind": described["device"],
        "threads": described["threads"],
        "torch": described["torch"],
        "diffusers": described["diffusers"],
        "huafang": version("huafang"),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Of the checkout that this code runs from; None if it was installed."""
    command = ["git", "-C", str(HOME), "rev-parse", "--short=10", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        if (HOME / ".git").exists():
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return None


# The farm


def _measure(
    model: Model, device: str, threads: int | None, recipe: Recipe, report: Report
) -> tuple[dict[str, Any], RenderedImage]:
    report("load", 0, 1)
    start = time.monotonic()
    pipeline = registry.load(model, device, threads)
    load_s = time.monotonic() - start
    held = torch_device.held_bytes(device)
    try:
        image = _rendered(pipeline, recipe, report)  # it also warms up
        seconds = {1: _seconds(pipeline, recipe, 1, report)}
        size = model.microbatch or pipeline.find_batch_size(sum(pipeline.components.values()))
        if size > 1:
            seconds[size] = _seconds(pipeline, recipe, size, report)
        measured = {
            "compiled": False,
            **pipeline.details,
            "load_s": round(load_s, 2),
            "bytes_loaded": held,
            "bytes_at_most": torch_device.held_bytes(device, at_most=True),
            "images_per_s": round(1 / seconds[1], 4),
            "batch_size": size,
            "images_per_s_at_batch_size": round(size / seconds[size], 4),
        }
    finally:
        pipeline.close()
    return measured, image


def _first_image(model: Model, device: str, threads: int | None, recipe: Recipe, report: Report) -> RenderedImage:
    pipeline = registry.load(model, device, threads)
    try:
        return _rendered(pipeline, recipe, report)
    finally:
        pipeline.close()


def _rendered(pipeline: Pipeline, recipe: Recipe, report: Report) -> RenderedImage:
    (image,) = _render(pipeline, recipe, 1, "render", report)
    if not isinstance(image, RenderedImage):
        raise image
    return image


def _seconds(pipeline: Pipeline, recipe: Recipe, images: int, report: Report) -> float:
    start = time.monotonic()
    _render(pipeline, recipe, images, "measure", report)
    return time.monotonic() - start


def _render(
    pipeline: Pipeline, recipe: Recipe, images: int, phase: str, report: Report
) -> list[RenderedImage | RenderFailed]:
    requests = [ImageRequest(recipe, SEED + number) for number in range(images)]
    return pipeline.generate(requests, lambda step, steps: report(phase, step, steps))


# Plain diffusers


def _require_text2image(model: Model) -> None:
    """Raises Invalid if plain diffusers draws from a picture only."""
    pipeline_class = getattr(diffusers, layout.read_index(layout.find(model))["_class_name"])
    if "mask_image" in signature(pipeline_class.__call__).parameters:
        raise Invalid(sentence("prove_needs_picture", model=model.name))


def _draw_by_plain(model: Model, device: torch.device, recipe: Recipe, report: Report) -> Pixels:
    report("load_plain", 0, 1)
    try:
        pipe = _load_plain(model, device, recipe)

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            report("compare", step + 1, pipe.num_timesteps)
            return tensors

        (image,) = pipe(
            **_arguments(model, pipe, recipe),
            generator=torch.Generator("cpu").manual_seed(SEED),
            callback_on_step_end=on_step_end,
        ).images
        return np.asarray(image)
    except Error:
        raise
    except Exception as error:  # its refusals have no class of their own
        if torch_device.is_out_of_memory(error):
            raise OutOfMemory(sentence("prove_plain_too_large", model=model.name)) from error
        raise ModelRefused(sentence("prove_plain_failed", model=model.name, error=layout.first_line(error))) from error


def _load_plain(model: Model, device: torch.device, recipe: Recipe) -> Any:
    """Without its safety checker, which would blacken what is compared."""
    assert model.source_path
    unchecked = {"safety_checker": None, "requires_safety_checker": False}
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        model.source_path,
        dtype=DTYPES[precision(model, device.type)],
        local_files_only=True,
        **(unchecked if "safety_checker" in model.facts.components else {}),
    ).to(device)
    config = json.loads((model.source_path / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    pipe.scheduler = scheduler(recipe.scheduler, config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _arguments(model: Model, pipe: Any, recipe: Recipe) -> dict[str, Any]:
    guidance = model.facts.guidance
    return {
        "prompt": recipe.prompt,
        guidance.argument: recipe.guidance if model.guided else guidance.off,
        "width": recipe.width,
        "height": recipe.height,
        "num_inference_steps": recipe.steps,
        **assembly.family_of(model).plain_arguments(model, pipe, recipe),
    }
