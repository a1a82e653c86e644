"""By which signs a machine has a GPU, and what a worker says that does not use it."""

from pathlib import Path

import pytest

from worker.devices.gpus import AMD, NVIDIA, DeviceUnusable, FoundGpu, find_gpu, unused

NO_CUDA = "Torch not compiled with CUDA enabled"
NO_SMI = "no such program"


def on_bus(root: Path, vendor: str, kind: str, address: str = "0000:01:00.0") -> None:
    device = root / "sys" / "bus" / "pci" / "devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def smi(folder: Path, script: str) -> str:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_machine_without_a_gpu_has_none(tmp_path: Path) -> None:
    on_bus(tmp_path, "0x10de", "0x040300")  # the sound of an NVIDIA card
    on_bus(tmp_path, "0x8086", "0x030000", "0000:00:02.0")  # graphics by Intel
    (tmp_path / "sys" / "bus" / "pci" / "devices" / "0000:00:03.0").mkdir()  # one that tells nothing
    assert find_gpu(tmp_path, NO_SMI) is None


@pytest.mark.parametrize("name", ["nvidia0", "nvidiactl"])
def test_a_gpu_is_found_by_the_file_of_its_driver(tmp_path: Path, name: str) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / name).touch()
    assert find_gpu(tmp_path, NO_SMI) == FoundGpu(NVIDIA, f"/dev/{name}")


@pytest.mark.parametrize(("vendor", "found"), [("0x10de", NVIDIA), ("0x1002", AMD)])
@pytest.mark.parametrize("kind", ["0x030000", "0x030200", "0x038000"])
def test_a_gpu_without_a_driver_is_found_on_the_bus(tmp_path: Path, vendor: str, kind: str, found: str) -> None:
    on_bus(tmp_path, vendor, kind)
    assert find_gpu(tmp_path, NO_SMI) == FoundGpu(found, "PCI 0000:01:00.0")


def test_of_two_gpus_the_one_by_nvidia_is_named(tmp_path: Path) -> None:
    on_bus(tmp_path, "0x1002", "0x030000", "0000:00:01.0")
    on_bus(tmp_path, "0x10de", "0x030200", "0000:02:00.0")
    assert find_gpu(tmp_path, NO_SMI) == FoundGpu(NVIDIA, "PCI 0000:02:00.0")


def test_a_gpu_that_only_nvidia_smi_lists_is_found(tmp_path: Path) -> None:
    listing = smi(tmp_path, "echo 'GPU 0: NVIDIA L4 (UUID: GPU-0b5c)'")
    assert find_gpu(tmp_path, listing) == FoundGpu(NVIDIA, "nvidia-smi: GPU 0: NVIDIA L4")
    failing = smi(tmp_path, "echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    assert find_gpu(tmp_path, failing) is None


def test_a_gpu_that_torch_should_use_is_not_left_to_the_cpu() -> None:
    with pytest.raises(DeviceUnusable) as refused:
        unused(FoundGpu(NVIDIA, "/dev/nvidia0"), f"{NO_CUDA}.")
    assert refused.value.message == (
        f"This machine has an NVIDIA GPU (/dev/nvidia0), which torch cannot use: {NO_CUDA}."
        " Set that right, or render on the CPU with HUAFANG_DEVICE=cpu."
    )
    with pytest.raises(DeviceUnusable, match="an AMD GPU"):
        unused(FoundGpu(AMD, "PCI 0000:01:00.0"), "no ROCm-capable device", is_rocm=True)


def test_a_gpu_that_this_torch_is_not_for_is_mentioned_only() -> None:
    """Many CPUs contain one by AMD; a laptop must run the demo."""
    said = unused(FoundGpu(AMD, "PCI 0000:01:00.0"), NO_CUDA)
    assert said is not None
    assert "AMD GPU" in said
    assert "HUAFANG_DEVICE=cpu" in said


@pytest.mark.parametrize(
    ("failure", "is_refused"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", True),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", True),
        ("CUDA driver initialization failed, you might not have a CUDA gpu.", True),
        ("Found no NVIDIA driver on your system.", False),
        ("No CUDA GPUs are available", False),
        (NO_CUDA, False),
    ],
)
def test_a_driver_that_fails_is_a_sign_and_a_missing_one_is_none(failure: str, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(DeviceUnusable, match="HUAFANG_DEVICE=cpu"):
            unused(None, failure)
    else:
        assert unused(None, failure) is None
