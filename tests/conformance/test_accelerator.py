"""What only an accelerator does: half precision, memory that ends, work that is queued, a context that breaks."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import Interrupted, OutOfMemory
from tests.conformance.test_painters import MINI, pictures, stroke
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.batch_size import MOST
from worker.pipelines.stable_diffusion import StableDiffusion

MEMORY = torch.cuda.get_device_properties(0).total_memory


@pytest.fixture
def paints() -> Iterator[StableDiffusion]:
    loaded = registry.load(MINI, DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    yield loaded
    loaded.close()


def limit(more: float) -> None:
    """Let this process take so many bytes more than it has now."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(0) + more) / MEMORY), 0)


def peak_of(paints: StableDiffusion, images: int) -> int:
    """What a call takes beside the weights."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(0)
    before = torch.cuda.memory_allocated(0)
    pictures(paints, *(stroke(paints, seed=seed) for seed in range(images)))
    return torch.cuda.max_memory_reserved(0) - before


def test_it_says_what_it_paints_on_and_in_which_precision() -> None:
    said = registry.describe("auto")
    assert (said["device"], said["precision"]) == ("cuda", "fp16")
    assert said["name"] == torch.cuda.get_device_name(0)
    assert registry.model_memory("auto") == MEMORY // 2


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_all_parts_are_there_in_the_precision_that_the_catalogue_says(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    loaded = registry.load(checkpoints.entry(checkpoints.make(tmp_path), precision=precision), DEVICE, threads=1)
    assert isinstance(loaded, StableDiffusion)
    assert loaded.details == {"precision": precision}
    for part in (loaded._pipe.unet, loaded._pipe.vae, loaded._pipe.text_encoder):
        assert (part.device, part.dtype) == (torch.device("cuda:0"), dtype)
    assert loaded._pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(pictures(loaded, stroke(loaded))[0], np.ndarray)
    loaded.close()


def test_when_memory_ends_fewer_images_still_fit(paints: StableDiffusion) -> None:
    one, many = peak_of(paints, 1), peak_of(paints, 32)
    before = pictures(paints, stroke(paints))[0]
    limit((one + many) / 2)
    try:
        with pytest.raises(OutOfMemory):
            pictures(paints, *(stroke(paints, seed=seed) for seed in range(32)))
        assert pictures(paints, stroke(paints))[0].tobytes() == before.tobytes()
    finally:
        limit(MEMORY)
    assert len(pictures(paints, *(stroke(paints, seed=seed) for seed in range(32)))) == 32


def test_capacity_is_found_within_what_other_models_leave(paints: StableDiffusion) -> None:
    free = torch.cuda.mem_get_info(0)[0]
    own = sum(paints.parts.values())
    assert paints.find_capacity(own) in (1, 2, 4, 8, 16, MOST)
    room = (peak_of(paints, 1) + peak_of(paints, 8)) / 2  # for painting
    assert paints.find_capacity(int(0.9 * free - room)) < 8
    assert len(pictures(paints, *(stroke(paints, seed=seed) for seed in range(64)))) == 64  # the limit is gone


def test_what_is_given_up_frees_the_device_within_a_step(paints: StableDiffusion) -> None:
    """Python runs ahead of the device; what it has queued by then nobody can take back."""
    strokes = [stroke(paints, seed=seed, steps=50) for seed in range(32)]
    began = time.monotonic()
    pictures(paints, *strokes)
    whole = time.monotonic() - began

    def give_up(step: int, steps: int) -> None:
        if step == 5:
            raise Interrupted("Nobody wants it any more.")

    with pytest.raises(Interrupted):
        paints.paint(strokes, give_up)
    began = time.monotonic()
    torch.cuda.synchronize()
    assert time.monotonic() - began < 1 + whole / 50


def test_memory_is_given_back(paints: StableDiffusion) -> None:
    pictures(paints, *(stroke(paints, seed=seed) for seed in range(8)))
    taken = torch.cuda.memory_reserved(0)
    other = registry.load(MINI, DEVICE, threads=1)  # has its parts in common with the first, but for the UNet
    other.close()
    del other
    paints.close()
    assert torch.cuda.memory_reserved(0) < taken / 2


def test_a_context_that_broke_is_told_from_a_picture_that_failed() -> None:
    """In a process of its own, for nothing can be computed there any more."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, DEVICE], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


BROKEN = """
import sys, torch
from tests.conformance.test_painters import MINI, pictures, stroke
from worker.pipelines import base as painter
from worker.pipelines.base import DeviceLost

paints = painter.load(MINI, sys.argv[1], threads=1)

def break_it(*_):
    torch.zeros(1, device="cuda")[torch.tensor([7], device="cuda")].sum()

hook = paints._pipe.unet.register_forward_pre_hook(break_it)
for _ in range(2):
    try:
        pictures(paints, stroke(paints))
        sys.exit("it painted")
    except DeviceLost as error:
        print(error)
    hook.remove()
"""
