"""DiffusersPipeline when its device or its precision fails, with a tiny checkpoint on the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import NanImage
from tests.conformance.test_pipelines import MINI, generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.base import DeviceLost
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[DiffusersPipeline]:
    loaded = registry.load(checkpoints.entry(checkpoints.make(tmp_path, "bert"), precision="fp32"), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    yield loaded
    loaded.close()


def test_an_image_that_is_nan_in_half_precision_is_rendered_in_full_once(pipeline: DiffusersPipeline) -> None:
    with torch.no_grad():
        pipeline._pipe.vae.post_quant_conv.weight *= 3e4  # decoding overflows fp16
    pipeline._pipe.to(torch.float16)
    calls: list[int] = []
    requests = [request_for(pipeline), request_for(pipeline, checkpoints.POISON)]
    results = pipeline.generate(requests, lambda step, steps: calls.append(step))
    assert [isinstance(result, NanImage) for result in results] == [False, True]
    assert calls.count(1) == 3  # both in half precision, then each in full
    assert pipeline._pipe.unet.dtype == pipeline._pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("scheduler", ["lms", "euler_a"])
def test_a_seed_gives_the_same_image_in_every_precision(scheduler: str) -> None:
    """Also with a scheduler that adds noise. Older torches draw other random numbers in half precision."""
    pipeline = registry.load(replace(MINI, precision="fp32"), DEVICE, threads=1)
    assert isinstance(pipeline, DiffusersPipeline)
    for mode in ("text2image", "inpaint"):
        one, another = (request_for(pipeline, seed=seed, scheduler=scheduler, mode=mode) for seed in (1, 2))
        full, other = (pixels.astype(int) for pixels in generate(pipeline, one, another))
        pipeline._pipe.to(torch.bfloat16)
        (rough,) = generate(pipeline, one)
        pipeline._pipe.to(torch.float32)
        assert np.abs(full - rough).mean() < np.abs(full - other).mean() / 3
    pipeline.close()


def test_where_full_precision_does_not_fit_into_memory_no_other_image_fails(pipeline: DiffusersPipeline) -> None:
    unet = pipeline._pipe.to(torch.float16).unet

    def fail_in_full(*_: object) -> None:
        if unet.dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    unet.register_forward_pre_hook(fail_in_full)
    requests = [request_for(pipeline), request_for(pipeline, checkpoints.POISON), request_for(pipeline, seed=2)]
    results = pipeline.generate(requests, lambda step, steps: None)
    assert [isinstance(result, NanImage) for result in results] == [False, True, False]
    assert unet.dtype == pipeline._pipe.vae.dtype == torch.float16


def test_full_precision_renders_nothing_twice(pipeline: DiffusersPipeline) -> None:
    calls: list[int] = []
    (result,) = pipeline.generate([request_for(pipeline, checkpoints.POISON)], lambda step, steps: calls.append(step))
    assert isinstance(result, NanImage)
    assert calls.count(1) == 1


@pytest.mark.parametrize("message", ["device-side assert triggered", "an illegal memory access was encountered"])
def test_a_fatal_cuda_error_raises_device_lost(pipeline: DiffusersPipeline, message: str) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError(f"CUDA error: {message}\nCompile with TORCH_USE_CUDA_DSA")

    pipeline._pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(DeviceLost, match=message):
        generate(pipeline, request_for(pipeline))


def test_another_error_does_not_raise_device_lost(pipeline: DiffusersPipeline) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    hook = pipeline._pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1"):
        generate(pipeline, request_for(pipeline))
    hook.remove()
    assert isinstance(generate(pipeline, request_for(pipeline))[0], np.ndarray)
