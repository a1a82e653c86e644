"""The torch device: which one to use, its memory, and what its errors mean. Imports torch; knows no models."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import diffusers
import torch

from common.sentences import Sentence
from worker.devices import gpus
from worker.devices.gpus import DeviceUnusable
from worker.devices.readings import host_memory, most_resident_bytes, resident_bytes
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
    """`auto` → the best device of this host, `cuda` and `cuda:all` → `cuda:0`, which some functions of torch require.

    Raises DeviceUnusable for a device that is not there, and for `auto` beside a GPU that torch cannot use.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_available in available.items() if is_available]
    if device == "auto":
        device = found[0]
        unused_gpu(device)
    kind, _, index = device.partition(":")
    if kind not in found:
        raise DeviceUnusable(sentence("device_unknown", device=device, devices=", ".join(found)))
    if kind != "cuda":
        return device
    index = "0" if index in ("", "all") else index
    if f"cuda:{index}" not in cuda_devices():
        raise DeviceUnusable(sentence("device_unknown", device=device, devices=", ".join(cuda_devices())))
    return f"cuda:{index}"


def cuda_devices() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


@cache
def unused_gpu(device: str) -> Sentence | None:
    """Why torch leaves a GPU of this host unused, where `auto` is this device. Raises DeviceUnusable."""
    return gpus.unused(gpus.find_gpu(), cuda_failure(), torch.version.hip is not None) if device == "cpu" else None


def cuda_failure() -> str:
    """What torch says when it starts CUDA; empty if it does start."""
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no device, or a driver that fails
        return str(error).partition("\n")[0]
    return ""


def gpu_uuid(device: str) -> str | None:
    """None for a device that is no GPU of CUDA."""
    resolved = resolve(device)
    return str(torch.cuda.get_device_properties(resolved).uuid) if resolved.startswith("cuda") else None


def model_memory(device: str = "auto") -> int:
    """The default for the bytes of this device that models may take. The rest is for activations."""
    resolved = torch.device(resolve(device))
    if resolved.type == "cuda":
        return int(torch.cuda.get_device_properties(resolved).total_memory) // 2
    return host_memory() // 4


def describe(device: str = "auto", threads: int | None = None) -> dict[str, str | int | None]:
    """The class of a worker on this device. Raises DeviceUnusable."""
    resolved = resolve(device)
    kind = resolved.partition(":")[0]
    try:
        cuda_name = torch.cuda.get_device_name(resolved) if kind == "cuda" else ""
    except RuntimeError as error:
        raise DeviceUnusable(
            sentence("device_fails", device=resolved, failure=str(error).partition("\n")[0])
        ) from error
    return {
        "device": kind,
        "name": cuda_name or torch.backends.cpu.get_cpu_capability(),
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
    return most_resident_bytes() if at_most else resident_bytes()


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
