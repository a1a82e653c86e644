"""What a painter of diffusers does when its device fails it, shown with a tiny checkpoint on the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import NanImage
from tests.conformance.test_painters import MINI, pictures, stroke
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.base import DeviceLost
from worker.pipelines.stable_diffusion import StableDiffusion

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")


@pytest.fixture
def paints(tmp_path: Path) -> Iterator[StableDiffusion]:
    loaded = registry.load(checkpoints.entry(checkpoints.make(tmp_path, "bert"), precision="fp32"), DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    yield loaded
    loaded.close()


def test_what_half_precision_cannot_paint_is_painted_in_full_and_only_once(paints: StableDiffusion) -> None:
    with torch.no_grad():
        paints._pipe.vae.post_quant_conv.weight *= 3e4  # what it decodes goes beyond the numbers of fp16
    paints._pipe.to(torch.float16)
    told: list[int] = []
    strokes = [stroke(paints), stroke(paints, checkpoints.POISON)]
    painted = paints.paint(strokes, lambda step, steps: told.append(step))
    assert [isinstance(picture, NanImage) for picture in painted] == [False, True]
    assert told.count(1) == 3  # both in half precision, then each in full
    assert paints._pipe.unet.dtype == paints._pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("scheduler", ["lms", "euler_a"])
def test_a_seed_means_the_same_picture_in_every_precision(scheduler: str) -> None:
    """With one that adds noise at every step, too. Older torches draw other numbers in half precision."""
    paints = registry.load(replace(MINI, precision="fp32"), DEVICE, threads=1)
    assert isinstance(paints, StableDiffusion)
    for mode in ("text2image", "inpaint"):
        one, another = (stroke(paints, seed=seed, scheduler=scheduler, mode=mode) for seed in (1, 2))
        full, other = (picture.astype(int) for picture in pictures(paints, one, another))
        paints._pipe.to(torch.bfloat16)
        (rough,) = pictures(paints, one)
        paints._pipe.to(torch.float32)
        assert np.abs(full - rough).mean() < np.abs(full - other).mean() / 3
    paints.close()


def test_full_precision_paints_nothing_twice(paints: StableDiffusion) -> None:
    told: list[int] = []
    (picture,) = paints.paint([stroke(paints, checkpoints.POISON)], lambda step, steps: told.append(step))
    assert isinstance(picture, NanImage)
    assert told.count(1) == 1


@pytest.mark.parametrize("said", ["device-side assert triggered", "an illegal memory access was encountered"])
def test_a_device_that_is_lost_is_said_to_be(paints: StableDiffusion, said: str) -> None:
    def fail(*_: object) -> None:
        raise torch.AcceleratorError(f"CUDA error: {said}\nCompile with TORCH_USE_CUDA_DSA")

    paints._pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(DeviceLost, match=said):
        pictures(paints, stroke(paints))


def test_another_failure_is_no_lost_device(paints: StableDiffusion) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    hook = paints._pipe.unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1"):
        pictures(paints, stroke(paints))
    hook.remove()
    assert isinstance(pictures(paints, stroke(paints))[0], np.ndarray)
