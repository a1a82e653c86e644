"""Whether this machine has a GPU, as the system says: by device files, the PCI bus and nvidia-smi. Knows no torch.

Torch cannot tell a machine without a GPU from one whose driver is broken or missing.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common.errors import Invalid
from common.sentences import Sentence
from worker.devices import sentence

NVIDIA, AMD = "NVIDIA", "AMD"
VENDORS = {"0x10de": NVIDIA, "0x1002": AMD}
DISPLAY_CLASS = "0x03"  # of PCI: VGA, 3D and other display controllers
SMI_TIMEOUT_S = 20
# What torch says where the driver is there and its start fails; not where the driver is missing, as without a GPU.
DRIVER_FAILS = ("driver on your system is too old", "cuda unknown error", "cuda driver initialization failed")


class DeviceUnusable(Invalid):
    """A worker cannot render on the device that its settings name."""


@dataclass(frozen=True)
class FoundGpu:
    vendor: str
    sign: str  # what it was found by


def find_gpu(root: Path = Path("/"), smi: str = "nvidia-smi") -> FoundGpu | None:
    """A GPU of this machine, one by NVIDIA first; None without. `root` and `smi` are given by tests."""
    for file in sorted((root / "dev").glob("nvidia[0-9c]*")):  # nvidia0, nvidiactl; not nvidia-uvm
        return FoundGpu(NVIDIA, f"/dev/{file.name}")
    on_bus = {vendor: address for address, vendor in _on_pci_bus(root)}
    if address := on_bus.get(NVIDIA):
        return FoundGpu(NVIDIA, f"PCI {address}")
    if listed := _listed_by(smi):  # WSL has neither device files nor a PCI bus
        return FoundGpu(NVIDIA, f"nvidia-smi: {listed}")
    if address := on_bus.get(AMD):
        return FoundGpu(AMD, f"PCI {address}")
    return None


def unused(gpu: FoundGpu | None, failure: str, is_rocm: bool = False) -> Sentence | None:
    """What to say of a worker that takes the CPU beside this GPU, because torch's start of CUDA fails so.

    Raises DeviceUnusable for a GPU that this torch is for: as a CPU worker it would claim images and render them a
    hundred times slower. Torch for CUDA can use no AMD GPU, which is a part of many CPUs.
    """
    if gpu is None and any(text in failure.lower() for text in DRIVER_FAILS):
        gpu = FoundGpu(NVIDIA, "its driver is here")
    if gpu is None:
        return None
    if gpu.vendor == AMD and not is_rocm:
        return sentence("gpu_not_used", vendor=gpu.vendor, sign=gpu.sign)
    raise DeviceUnusable(sentence("gpu_not_usable", vendor=gpu.vendor, sign=gpu.sign, failure=failure.rstrip(".")))


def _on_pci_bus(root: Path) -> list[tuple[str, str]]:
    """Address and vendor of the display devices by vendors of GPUs, the first of a vendor last."""
    found = []
    for device in sorted((root / "sys" / "bus" / "pci" / "devices").glob("*"), reverse=True):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor in VENDORS and kind.startswith(DISPLAY_CLASS):
            found.append((device.name, VENDORS[vendor]))
    return found


def _listed_by(smi: str) -> str | None:
    """The first GPU that nvidia-smi lists, without its UUID."""
    if not (program := shutil.which(smi)):
        return None
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.partition(" (UUID")[0].strip() for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return lines[0] if lines else None
