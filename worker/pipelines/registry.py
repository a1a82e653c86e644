"""Which module makes pipelines on a device: diffusers, or the stub. Imports neither until one is asked for."""

from collections.abc import Hashable, Mapping
from typing import Any

from common.catalog.catalog import Model
from worker.pipelines.base import Pipeline


def load(model: Model, device: str, threads: int | None = None) -> Pipeline:
    """Make a model resident. Raises ModelRefused with one sentence that says why and what to do."""
    return _kind(device).load(model, device, threads)


def describe(device: str, threads: int | None = None) -> dict[str, str | int | None]:
    """The class of a worker on this device: pictures of workers whose descriptions are equal can be compared."""
    return _kind(device).describe(device, threads)


def model_memory(device: str) -> int:
    """Bytes that models may take of this device together, if nobody says otherwise."""
    return int(_kind(device).model_memory(device))


def model_components(model: Model, device: str) -> Mapping[Hashable, int] | None:
    """About how much of it each part of a model will take; None when its files are not here yet."""
    parts: Mapping[Hashable, int] | None = _kind(device).model_components(model)
    return parts


def _kind(device: str) -> Any:
    if device.partition(":")[0] == "stub":
        from worker.pipelines import stub as kind
    else:
        from worker.pipelines import stable_diffusion as kind  # type: ignore[no-redef]  # imports torch
    return kind
