"""A GPU of NVIDIA for tests: the part of `pynvml` that `worker.devices.readings` uses, in memory."""

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30


class NVMLError(Exception):
    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


@dataclass
class FakeNvml:
    """A value that is an NVMLError is raised. `driver` is cleared while the driver hangs."""

    uuid: str = "GPU-0b5c"
    memory: Any = field(default_factory=lambda: SimpleNamespace(used=9 * GIB, total=24 * GIB))
    load: Any = 98
    temperature: Any = 64
    memory_errors: Any = 0
    remapped_rows: Any = (0, 0, 0, 0)
    driver: threading.Event = field(default_factory=threading.Event)

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_TIMEOUT = 10
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_ERROR_UNKNOWN = 999
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __post_init__(self) -> None:
        self.driver.set()

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.uuid:
            raise NVMLError(6, "Not Found")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        self.driver.wait()
        return self._value(self.memory)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return SimpleNamespace(gpu=self._value(self.load))

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._value(self.temperature)

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> Any:
        assert (kind, counter) == (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC)
        return self._value(self.memory_errors)

    def nvmlDeviceGetRemappedRows(self, handle: str) -> Any:
        return self._value(self.remapped_rows)

    def _value(self, value: Any) -> Any:
        if isinstance(value, NVMLError):
            raise value
        return value


UNSUPPORTED = NVMLError(FakeNvml.NVML_ERROR_NOT_SUPPORTED, "Not Supported")
LOST = NVMLError(FakeNvml.NVML_ERROR_GPU_IS_LOST, "GPU is lost")
