"""The torch device: which one to use, its memory, and what its errors mean. Imports torch; knows no models."""

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import diffusers
import torch

from common.errors import Invalid
from worker.pipelines import sentence

USABLE = 0.9  # of the free memory

# Messages of CUDA, cuBLAS and cuDNN after which every later call in this process fails.
FATAL_ERRORS = (
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


def resolve(device: str) -> str:
    """`auto` → the best device of this host, `cuda` → `cuda:0`. Raises Invalid for a device that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_available in available.items() if is_available]
    if device == "auto":
        device = found[0]
    if device.partition(":")[0] not in found:
        raise Invalid(sentence("device_unknown", device=device, devices=", ".join(found)))
    return "cuda:0" if device == "cuda" else device  # some functions of torch require the index


def model_memory(device: str = "auto") -> int:
    """The default for the bytes of this device that models may take. The rest is for activations."""
    resolved = torch.device(resolve(device))
    if resolved.type == "cuda":
        return int(torch.cuda.get_device_properties(resolved).total_memory) // 2
    return _host_memory() // 4


def describe(device: str = "auto", threads: int | None = None) -> dict[str, str | int | None]:
    """The class of a worker on this device. Raises Invalid."""
    resolved = resolve(device)
    kind = resolved.partition(":")[0]
    return {
        "device": kind,
        "name": torch.cuda.get_device_name(resolved) if kind == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "precision": "fp16" if kind == "cuda" else "fp32",
        "threads": (threads or torch.get_num_threads()) if kind == "cpu" else None,
    }


def held_bytes(device: str = "auto", at_most: bool = False) -> int:
    """The memory of this device that this process holds, or held `at_most`; of a CPU, its resident memory."""
    resolved = torch.device(resolve(device))
    if resolved.type == "cuda":
        held = torch.cuda.max_memory_reserved if at_most else torch.cuda.memory_allocated
        return int(held(resolved))
    if resolved.type == "mps" and not at_most:
        return int(torch.mps.driver_allocated_memory())
    with suppress(OSError):  # no Linux
        if not at_most:
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _host_memory() -> int:
    """The bytes of this machine, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in message
        or "can't allocate memory" in message
        or "not enough memory" in message
    )


def is_lost(error: BaseException) -> bool:
    message = str(error).lower()
    return any(fatal in message for fatal in FATAL_ERRORS)


def free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def memory_limit(device: torch.device, reserved: int) -> Iterator[None]:
    """Limit this process to the memory it would have if models held `reserved` bytes. Does nothing without CUDA."""
    if device.type != "cuda":
        yield
        return
    free_memory()
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    activations = USABLE * (free + torch.cuda.memory_reserved(device)) - reserved
    torch.cuda.set_per_process_memory_fraction(min(1.0, (allocated + max(0, activations)) / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
