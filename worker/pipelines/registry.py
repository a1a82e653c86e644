"""Chooses the implementation for a device: the stub for `stub[:SECONDS]`, else diffusers.

Imports torch only when a device other than the stub is asked for.
"""

from collections.abc import Hashable, Mapping

from common.catalog.catalog import Model
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
    """The class of a worker on this device. Workers of one class render comparable images. Raises Invalid."""
    if _is_stub(device):
        from worker.pipelines import stub

        return stub.describe()
    from worker.pipelines import device as torch_device

    return torch_device.describe(device, threads)


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

    if model.offload and torch_device.resolve(device) != placement.HOME:
        sizes = layout.sizes_by_name(model)
        return placement.largest_stage(model, sizes) if sizes else None
    return layout.component_sizes(model)


def _is_stub(device: str) -> bool:
    return device.partition(":")[0] == "stub"
