"""Chooses the implementation for a device: the stub for `stub[:SECONDS]`, else diffusers.

Imports torch only when a device other than the stub is asked for.
"""

from collections.abc import Hashable, Mapping
from typing import Any

from common.catalog.catalog import Model
from common.sentences import Sentence
from worker.devices import readings
from worker.pipelines import placement
from worker.pipelines.base import Pipeline


def load(model: Model, device: str, threads: int | None = None) -> Pipeline:
    """Load a model into memory. Raises ModelRefused, OutOfMemory or DeviceLost."""
    if _is_stub(device):
        from worker.pipelines import stub

        return stub.load(model, device)
    from worker.pipelines import diffusers_pipeline

    return diffusers_pipeline.load(model, device, threads)


def describe(device: str, threads: int | None = None) -> dict[str, str | int | None]:
    """The class of a worker on this device. Workers of one class render comparable images. Raises DeviceUnusable."""
    if _is_stub(device):
        from worker.pipelines import stub

        return stub.describe()
    from worker.pipelines import device as torch_device

    return torch_device.describe(device, threads)


def details(model: Model, device: str) -> Mapping[str, Any]:
    """What a model adds to the class of a worker on this device: see `Pipeline.details`."""
    if _is_stub(device):
        return {}
    from worker.pipelines import device as torch_device
    from worker.pipelines import diffusers_pipeline

    return diffusers_pipeline.details(model, torch_device.resolve(device).partition(":")[0])


def model_memory(device: str) -> int:
    """The default for the bytes of this device that models may take together."""
    if _is_stub(device):
        from worker.pipelines import stub

        return stub.MODEL_BYTES  # one model
    from worker.pipelines import device as torch_device

    return torch_device.model_memory(device)


def model_components(model: Model, device: str) -> Mapping[Hashable, int] | None:
    """The bytes that a model takes of the device, by component, estimated from its files.

    None while they are not on this host.
    """
    if _is_stub(device):
        from worker.pipelines import stub

        return stub.components(model)
    from worker.checkpoints import layout
    from worker.pipelines import device as torch_device

    if model.offload and torch_device.resolve(device) != placement.HOST:
        sizes = layout.sizes_by_name(model)
        return placement.largest_stage(model, sizes) if sizes else None
    return layout.component_sizes(model)


def unused_gpu(device: str) -> Sentence | None:
    """Why a worker on this device leaves a GPU of this host unused; None if it does not, or was told to."""
    if device != "auto":
        return None
    from worker.pipelines import device as torch_device

    return torch_device.unused_gpu(torch_device.resolve(device))


def device_reader(device: str) -> readings.Read:
    """What reads how this device does."""
    if _is_stub(device):
        return readings.reader("stub", None)
    from worker.pipelines import device as torch_device

    uuid, resolved = torch_device.gpu_uuid(device), torch_device.resolve(device)
    return readings.reader(resolved, uuid, unused_gpu(device))


def survey(device: str) -> dict[str, Any]:
    """The class of a worker on this device, the GPUs of CUDA here, and why one is unused. Raises DeviceUnusable."""
    described = describe(device)
    if _is_stub(device):
        return {**described, "cuda": [], "unused_gpu": None}
    from worker.pipelines import device as torch_device

    return {**described, "cuda": torch_device.cuda_devices(), "unused_gpu": unused_gpu(device)}


def _is_stub(device: str) -> bool:
    return device.partition(":")[0] == "stub"
