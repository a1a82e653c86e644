"""The device that a painter paints on: which it is, how much memory there is of it, and what it says when it fails.

Imports torch, so import it late. Knows nothing of models.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import diffusers
import torch

from common.errors import Invalid

MARGIN = 0.9  # of the memory that is free

# What CUDA, cuBLAS and cuDNN say when nothing can be computed in this process any more.
LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
)


def choose(device: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_there in there.items() if is_there]
    if device == "auto":
        device = found[0]
    if device.partition(":")[0] not in found:
        raise Invalid(f"There is no device {device} here, only {', '.join(found)}.")
    return "cuda:0" if device == "cuda" else device  # torch wants to be told which, here and there


def model_memory(device: str = "auto") -> int:
    """Bytes that models may take of this device if nobody says otherwise. The rest is for painting, and for others."""
    where = torch.device(choose(device))
    if where.type == "cuda":
        return int(torch.cuda.get_device_properties(where).total_memory) // 2
    return _main_memory() // 4


def describe(device: str = "auto", threads: int | None = None) -> dict[str, str | int | None]:
    chosen = choose(device)
    kind = chosen.partition(":")[0]
    return {
        "device": kind,
        "name": torch.cuda.get_device_name(chosen) if kind == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "precision": "fp16" if kind == "cuda" else "fp32",
        "threads": (threads or torch.get_num_threads()) if kind == "cpu" else None,
    }


def _main_memory() -> int:
    """Of this machine, or of the container that this is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        there = min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return there


def is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in said
        or "can't allocate memory" in said
        or "not enough memory" in said
    )


def is_lost(error: BaseException) -> bool:
    said = str(error).lower()
    return any(sentence in said for sentence in LOST)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_limit(device: torch.device, reserved: int) -> Iterator[None]:
    """As if models took `reserved` bytes and a margin were left; only CUDA can be told so."""
    if device.type != "cuda":
        yield
        return
    free_memory()
    free, total = torch.cuda.mem_get_info(device)
    mine = torch.cuda.memory_allocated(device)
    for_painting = MARGIN * (free + torch.cuda.memory_reserved(device)) - reserved
    torch.cuda.set_per_process_memory_fraction(min(1.0, (mine + max(0, for_painting)) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
