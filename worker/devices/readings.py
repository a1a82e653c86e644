"""How a device does: its memory, load, temperature and errors, of a GPU as NVML tells them. A thread reads them.

NVML is NVIDIA's library; without it or its driver nothing is reported of a GPU. Without a GPU the memory of this
process is. The thread is for a driver that hangs when its GPU fails: a heartbeat must not wait for it.
"""

import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.log import log_event
from common.sentences import Sentence
from worker.devices import sentence

# Errors of NVML that are the device's; the others say that it has no such value.
SEVERE = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNKNOWN", "NVML_ERROR_TIMEOUT")
SILENT_S = 15.0  # a reading that takes longer is an error of the device


@dataclass(frozen=True)
class DeviceStatus:
    """Memory in bytes, utilisation in percent of the last second or less. None: this device does not tell."""

    name: str
    memory_used: int | None = None
    memory_total: int | None = None
    utilisation: int | None = None
    temperature_c: int | None = None
    errors: Sequence[str] = ()


Read = Callable[[], list[DeviceStatus]]


class DeviceMonitor:
    """Keeps the latest reading."""

    def __init__(self, read: Read, interval_s: float, silent_s: float = SILENT_S) -> None:
        self._read, self._interval_s, self._silent_s = read, interval_s, silent_s
        self._status: list[DeviceStatus] = []
        self._reads_since: float | None = None
        self._logged: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device readings", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def latest(self) -> list[dict[str, Any]]:
        """As JSON. Empty until the first reading."""
        since, status = self._reads_since, self._status
        if since is not None and time.monotonic() - since > self._silent_s:
            silent = (sentence("driver_silent"),)
            status = [replace(one, utilisation=None, temperature_c=None, errors=silent) for one in status]
        self._log_new_errors(status)
        return [asdict(one) for one in status]

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._reads_since = time.monotonic()
            self._status = self._read()
            self._reads_since = None
            self._stopping.wait(self._interval_s)

    def _log_new_errors(self, status: Sequence[DeviceStatus]) -> None:
        errors = {error for one in status for error in one.errors}
        for error in sorted(errors - self._logged):
            log_event("device_error", error=error)
        self._logged = errors


def reader(name: str, uuid: str | None, unused_gpu: Sentence | None = None) -> Read:
    """What reads the GPU of this UUID; without one, the memory of this process and why no GPU is used."""
    if uuid is None:
        return lambda: [process_status(name, [unused_gpu] if unused_gpu else [])]
    nvml = load_nvml()
    return Gpu(nvml, name, uuid).read if nvml else list


def load_nvml() -> Any:
    """NVIDIA's module, initialised; None without it or without its driver."""
    try:
        import pynvml
    except ImportError:
        return None
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return pynvml
    return None


def process_status(name: str, errors: Sequence[str] = ()) -> DeviceStatus:
    return DeviceStatus(name, resident_bytes(), host_memory(), errors=tuple(errors))


class Gpu:
    """One GPU. `nvml` has the functions of NVIDIA's module `pynvml`, and has been initialised."""

    def __init__(self, nvml: Any, name: str, uuid: str) -> None:
        """`uuid` as torch has it, without `GPU-` or `MIG-`."""
        self._nvml, self._name, self._uuid = nvml, name, uuid

    def read(self) -> list[DeviceStatus]:
        nvml, handle = self._nvml, self._find()
        if handle is None:
            return [DeviceStatus(self._name, errors=(sentence("gpu_lost"),))]
        errors: list[str] = []

        def ask(function: str, *arguments: Any) -> Any:
            """None where this GPU or its driver has no such value."""
            try:
                return getattr(nvml, function)(handle, *arguments)
            except nvml.NVMLError as error:
                if error.value in [getattr(nvml, name) for name in SEVERE]:
                    errors.append(sentence("gpu_unreachable", error=error))
                return None

        memory = ask("nvmlDeviceGetMemoryInfo")
        load = ask("nvmlDeviceGetUtilizationRates")
        temperature = ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        if count := ask("nvmlDeviceGetTotalEccErrors", *kinds):
            errors.append(sentence("memory_errors", count=count))
        _, _, is_pending, has_failed = ask("nvmlDeviceGetRemappedRows") or (0, 0, False, False)
        if has_failed:
            errors.append(sentence("remap_failed"))
        elif is_pending:
            errors.append(sentence("remap_pending"))
        return [
            DeviceStatus(
                self._name,
                memory and memory.used,
                memory and memory.total,
                load and load.gpu,
                temperature,
                tuple(dict.fromkeys(errors)),
            )
        ]

    def _find(self) -> Any:
        for kind in ("GPU-", "MIG-"):
            with suppress(self._nvml.NVMLError):
                return self._nvml.nvmlDeviceGetHandleByUUID(kind + self._uuid)
        return None


def resident_bytes() -> int:
    """The memory that this process has now; where the system does not tell, the most that it ever had."""
    with suppress(OSError):  # no Linux
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return most_resident_bytes()


def most_resident_bytes() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def host_memory() -> int:
    """The bytes of this machine, or of its container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total
