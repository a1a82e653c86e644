"""What a worker reports of its device: by NVML of a GPU, by the system without one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.nvml import GIB, LOST, UNSUPPORTED, FakeNvml
from tests.support.workers import until
from worker.devices import readings
from worker.devices.readings import DeviceMonitor, DeviceStatus, Gpu, host_memory


@contextmanager
def monitoring(read: readings.Read, silent_s: float = 60) -> Iterator[DeviceMonitor]:
    monitor = DeviceMonitor(read, 0.01, silent_s)
    monitor.start()
    try:
        until(monitor.latest)
        yield monitor
    finally:
        monitor.stop()


def read(nvml: FakeNvml) -> DeviceStatus:
    [status] = Gpu(nvml, "cuda:0", "0b5c").read()
    return status


def test_a_gpu_tells_its_memory_load_and_temperature() -> None:
    assert read(FakeNvml()) == DeviceStatus("cuda:0", 9 * GIB, 24 * GIB, 98, 64, ())


def test_an_instance_of_a_divided_gpu_is_found() -> None:
    assert read(FakeNvml(uuid="MIG-0b5c")).memory_total == 24 * GIB


def test_what_a_gpu_does_not_tell_is_unknown_and_no_error() -> None:
    nvml = FakeNvml(memory=UNSUPPORTED, load=UNSUPPORTED, temperature=UNSUPPORTED)
    nvml.memory_errors = nvml.remapped_rows = UNSUPPORTED
    assert read(nvml) == DeviceStatus("cuda:0")


@pytest.mark.parametrize(
    ("facts", "errors"),
    [
        ({"memory_errors": 3}, ["3 memory errors that could not be corrected, since its driver was loaded"]),
        ({"remapped_rows": (1, 2, 1, 0)}, ["a row of its memory is bad and will be replaced when the GPU is reset"]),
        ({"remapped_rows": (1, 2, 1, 1)}, ["a row of its memory is bad and could not be replaced"]),
        ({"memory": LOST, "load": LOST, "temperature": LOST}, ["its driver cannot read it (GPU is lost)"]),
        ({"uuid": "GPU-another"}, ["its driver does not list it any more"]),
    ],
)
def test_a_gpu_tells_its_errors(facts: dict[str, Any], errors: list[str]) -> None:
    assert list(read(FakeNvml(**facts)).errors) == errors


def test_a_driver_that_hangs_is_an_error_and_nobody_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml()
    with monitoring(Gpu(nvml, "cuda:0", "0b5c").read, silent_s=0.2) as monitor:
        assert monitor.latest()[0]["errors"] == ()
        nvml.driver.clear()
        began = time.monotonic()
        [silent] = until(lambda: [one for one in monitor.latest() if one["errors"]])
        assert list(silent["errors"]) == ["its driver does not answer"]
        assert (silent["memory_total"], silent["utilisation"], silent["temperature_c"]) == (24 * GIB, None, None)
        assert time.monotonic() - began < 60
        nvml.driver.set()
        until(lambda: not monitor.latest()[0]["errors"])
    assert [record.message.split()[0] for record in caplog.records] == ["device_error"]


def test_an_error_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    nvml = FakeNvml(memory_errors=1)
    with monitoring(Gpu(nvml, "cuda:0", "0b5c").read) as monitor:
        for _ in range(3):
            monitor.latest()
        nvml.memory_errors = 2
        until(lambda: "2 memory errors" in str(monitor.latest()))
    assert [record.message.split("'")[1].split()[0] for record in caplog.records] == ["1", "2"]


def test_without_a_gpu_the_memory_of_the_process_is_told() -> None:
    [status] = readings.reader("cpu", None)()
    assert status.memory_used in range(10_000_000, host_memory())
    assert status.memory_total == host_memory()
    assert (status.utilisation, status.temperature_c, status.errors) == (None, None, ())


@pytest.mark.skipif(readings.load_nvml() is not None, reason="this machine has NVIDIA's driver")
def test_without_the_driver_nothing_is_told_of_a_gpu() -> None:
    assert readings.reader("cuda:0", "0b5c")() == []
