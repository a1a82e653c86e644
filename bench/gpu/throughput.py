"""One model on the device alone: `python -m bench.gpu.throughput NAME [--tiny]` prints a line of JSON for each figure.

First eager: one image, then twice as many a call for as long as they fit and the time lasts; then how long an
interrupted call keeps the device busy; then the same speed with the denoiser's repeated blocks compiled.
"""

import json
import shutil
import signal
import sys
import time
from typing import Any

import torch

from bench.gpu import models
from common.catalog.families import families
from common.errors import Interrupted, OutOfMemory
from common.recipes.recipe import Recipe
from common.sentences import Sentence
from worker.pipelines.base import ImageRequest, RenderedImage
from worker.pipelines.device import held_bytes, resolve
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

SIZES = (1, 2, 4, 8, 16)
SIZES_S = 40.0  # for all sizes together
PROMPT = "一只猫坐在红色的沙发上"


def main(name: str, tiny: bool) -> None:
    if models.FAMILIES[name] not in families():
        show(skipped=f"this commit has no family {models.FAMILIES[name]}")
        return
    device = torch.device("cpu" if tiny else resolve("cuda"))
    torch.set_num_threads(1 if tiny else torch.get_num_threads())
    show(device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    began = time.monotonic()
    pipeline = models.diffusers_pipeline(name, device, tiny)
    show(made_s=elapsed(began), bytes_of_weights=sum(pipeline.components.values()))
    names = ("family", "width", "height", "steps", "scheduler", "guidance")
    show(recipe={name: getattr(pipeline.model, name) for name in names}, **pipeline.details)
    try:
        best = eager(pipeline, tiny)
        show(free_after_interrupt_ms=[interrupt(pipeline, at) for at in range(1, pipeline.model.steps)][:5])
        compiled(pipeline, best, tiny)
    finally:
        assert pipeline.model.source_path
        shutil.rmtree(pipeline.model.source_path)


def eager(pipeline: DiffusersPipeline, tiny: bool) -> int:
    """The number of images a call with which it is fastest."""
    show(eager_first_image_s=seconds(pipeline, 1))
    began, per_s = time.monotonic(), dict[int, float]()
    for images in SIZES[:2] if tiny else SIZES:
        try:
            taken = seconds(pipeline, images)
        except OutOfMemory:
            show(eager_out_of_memory_at=images)
            break
        per_s[images] = images / taken
        show(eager_images_per_s={size: round(value, 4) for size, value in per_s.items()})
        if time.monotonic() - began + 2 * taken > SIZES_S:
            break
    show(eager_bytes_at_most=held_bytes(str(pipeline._device), at_most=True))
    return max(per_s, key=lambda size: per_s[size])


def compiled(pipeline: DiffusersPipeline, best: int, tiny: bool) -> None:
    """Regional where diffusers knows the blocks: that takes seconds, not minutes."""
    denoiser = pipeline._denoiser
    options = {"backend": "eager"} if tiny else {}  # a CPU shows that it can be called, not how fast it is
    is_regional = bool(getattr(denoiser, "_repeated_blocks", None))
    show(compiled="blocks" if is_regional else "whole")
    (denoiser.compile_repeated_blocks if is_regional else denoiser.compile)(**options)
    per_s = {}
    for images in dict.fromkeys((1, best)):
        show(**{f"compiled_first_{images}_s": seconds(pipeline, images)})
        per_s[images] = round(images / seconds(pipeline, images), 4)
        show(compiled_images_per_s=per_s)


def interrupt(pipeline: DiffusersPipeline, at: int) -> float:
    """Milliseconds from the exception that a cancelled job raises in this step until the device has no more work."""
    raised = 0.0

    def on_step(step: int, steps: int) -> None:
        nonlocal raised
        if step == at:
            raised = time.monotonic()
            raise Interrupted(Sentence("cancelled", "cancelled", {}))

    try:
        pipeline.generate([request(pipeline, 0)], on_step)
    except Interrupted:
        synchronize(pipeline)
    return round((time.monotonic() - raised) * 1000, 2)


def seconds(pipeline: DiffusersPipeline, images: int) -> float:
    """Of one call. Raises RuntimeError if it gives no images, for then the time says nothing."""
    began = time.monotonic()
    rendered = pipeline.generate([request(pipeline, seed) for seed in range(images)], lambda step, steps: None)
    synchronize(pipeline)
    if wrong := [image for image in rendered if not isinstance(image, RenderedImage)]:
        raise RuntimeError(str(wrong[0]))
    return elapsed(began)


def request(pipeline: DiffusersPipeline, seed: int) -> ImageRequest:
    model = pipeline.model
    recipe = Recipe(
        prompt=PROMPT,
        negative_prompt="",
        model=model.name,
        width=model.width,
        height=model.height,
        steps=model.steps,
        scheduler=model.scheduler,
        guidance=model.guidance,
        seeds=(seed,),
        mode="text2image",
        format="png",
    )
    return ImageRequest(recipe, seed)


def synchronize(pipeline: DiffusersPipeline) -> None:
    if pipeline._device.type == "cuda":
        torch.cuda.synchronize(pipeline._device)


def elapsed(began: float) -> float:
    return round(time.monotonic() - began, 4)


def show(**figures: Any) -> None:
    print(json.dumps(figures, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleans up
    main(sys.argv[1], "--tiny" in sys.argv)
