"""What needs an accelerator: half precision, running out of memory, queued work, a broken CUDA context."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import Interrupted, OutOfMemory
from tests.conformance.test_pipelines import MINI, generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.pipelines import registry
from worker.pipelines.batch_size import MAX_IMAGES
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

MEMORY = torch.cuda.get_device_properties(0).total_memory


@pytest.fixture
def pipeline() -> Iterator[DiffusersPipeline]:
    loaded = registry.load(MINI, DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    yield loaded
    loaded.close()


def limit(more: float) -> None:
    """Limit this process to so many bytes more than it has now."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved(0) + more) / MEMORY), 0)


def peak_of(pipeline: DiffusersPipeline, images: int) -> int:
    """The bytes that a call takes beside the weights."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(0)
    before = torch.cuda.memory_allocated(0)
    generate(pipeline, *(request_for(pipeline, seed=seed) for seed in range(images)))
    return torch.cuda.max_memory_reserved(0) - before


def test_the_worker_class_names_the_device_and_the_precision() -> None:
    described = registry.describe("auto")
    assert (described["device"], described["precision"]) == ("cuda", "fp16")
    assert described["name"] == torch.cuda.get_device_name(0)
    assert registry.model_memory("auto") == MEMORY // 2


def test_the_device_tells_how_it_does() -> None:
    [status] = registry.device_reader("auto")()
    assert status.memory_used
    assert status.memory_total == pytest.approx(MEMORY, rel=0.1)
    assert status.utilisation in range(101)
    assert status.temperature_c in range(1, 120)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_all_components_are_on_the_device_in_the_catalogues_precision(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    loaded = registry.load(checkpoints.entry(checkpoints.make(tmp_path), precision=precision), DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    assert loaded.details == {"precision": precision}
    for component in (loaded._pipe.unet, loaded._pipe.vae, loaded._pipe.text_encoder):
        assert (component.device, component.dtype) == (torch.device("cuda:0"), dtype)
    assert loaded._pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(generate(loaded, request_for(loaded))[0], np.ndarray)
    loaded.close()


def test_fewer_images_still_fit_after_memory_ran_out(pipeline: DiffusersPipeline) -> None:
    one, many = peak_of(pipeline, 1), peak_of(pipeline, 32)
    before = generate(pipeline, request_for(pipeline))[0]
    limit((one + many) / 2)
    try:
        with pytest.raises(OutOfMemory):
            generate(pipeline, *(request_for(pipeline, seed=seed) for seed in range(32)))
        assert generate(pipeline, request_for(pipeline))[0].tobytes() == before.tobytes()
    finally:
        limit(MEMORY)
    assert len(generate(pipeline, *(request_for(pipeline, seed=seed) for seed in range(32)))) == 32


def test_the_batch_size_fits_beside_other_models(pipeline: DiffusersPipeline) -> None:
    free = torch.cuda.mem_get_info(0)[0]
    own = sum(pipeline.components.values())
    assert pipeline.find_batch_size(own) in (1, 2, 4, 8, 16, MAX_IMAGES)
    room = (peak_of(pipeline, 1) + peak_of(pipeline, 8)) / 2  # for activations
    assert pipeline.find_batch_size(int(0.9 * free - room)) < 8
    assert len(generate(pipeline, *(request_for(pipeline, seed=seed) for seed in range(64)))) == 64  # the limit is gone


def test_an_interrupted_call_frees_the_device_within_a_step(pipeline: DiffusersPipeline) -> None:
    """Python runs ahead of the device; queued kernels cannot be taken back."""
    requests = [request_for(pipeline, seed=seed, steps=50) for seed in range(32)]
    began = time.monotonic()
    generate(pipeline, *requests)
    whole = time.monotonic() - began

    def interrupt(step: int, steps: int) -> None:
        if step == 5:
            raise Interrupted("No image is wanted any more.")

    with pytest.raises(Interrupted):
        pipeline.generate(requests, interrupt)
    began = time.monotonic()
    torch.cuda.synchronize()
    assert time.monotonic() - began < 1 + whole / 50


def test_close_frees_the_memory(pipeline: DiffusersPipeline) -> None:
    generate(pipeline, *(request_for(pipeline, seed=seed) for seed in range(8)))
    taken = torch.cuda.memory_reserved(0)
    other = registry.load(MINI, DEVICE, threads=1)  # shares its components with the first, but not the UNet
    other.close()
    del other
    pipeline.close()
    assert torch.cuda.memory_reserved(0) < taken / 2


def test_a_broken_context_raises_device_lost() -> None:
    """In a process of its own, for nothing can be computed there afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, DEVICE], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


BROKEN = """
import sys, torch
from tests.conformance.test_pipelines import MINI, generate, request_for
from worker.pipelines import registry
from worker.pipelines.base import DeviceLost

pipeline = registry.load(MINI, sys.argv[1], threads=1)

def break_it(*_):
    torch.zeros(1, device="cuda")[torch.tensor([7], device="cuda")].sum()

hook = pipeline._pipe.unet.register_forward_pre_hook(break_it)
for _ in range(2):
    try:
        generate(pipeline, request_for(pipeline))
        sys.exit("it rendered")
    except DeviceLost as error:
        print(error)
    hook.remove()
"""
