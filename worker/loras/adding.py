"""Adds changes to what a layer computes, beside its own weights, which stay as they are.

The matrices become buffers of the layer, so that they go with it to another device or precision. Each use's change is
that of the layer alone, so the order of several does not matter, and one of weight 0 changes nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from worker.loras.changes import Change


class Added:
    """The changes of one layer while they count."""

    def __init__(self, layer: Any, uses: Sequence[tuple[Change, float]]) -> None:
        self._layer = layer
        self._factors = [(change.scale, weight) for change, weight in uses]
        self._names: list[str] = []
        self._hook = layer.register_forward_hook(self._add)
        try:
            for index, (change, _) in enumerate(uses):
                self._keep(f"lora{index}_down", change.down)
                self._keep(f"lora{index}_up", change.up if layer.weight.ndim == 2 else change.up[:, :, None, None])
                if change.magnitude is not None:
                    self._keep(f"lora{index}_growth", _growth(layer.weight, change))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        self._hook.remove()
        for name in self._names:
            delattr(self._layer, name)

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        weight = self._layer.weight
        self._layer.register_buffer(name, tensor.to(weight.device, weight.dtype).contiguous(), persistent=False)
        self._names.append(name)

    def _add(self, layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        total = output
        for index, (scale, weight) in enumerate(self._factors):
            change = self._low_rank(inputs[0], f"lora{index}") * scale
            growth = getattr(layer, f"lora{index}_growth", None)
            if growth is not None:
                along = (-1,) if layer.weight.ndim == 2 else (-1, 1, 1)
                own = output if layer.bias is None else output - layer.bias.view(along)
                change = (own + change) * growth.view(along) + change
            total = total + change * weight
        return total

    def _low_rank(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        layer = self._layer
        down, up = getattr(layer, f"{name}_down"), getattr(layer, f"{name}_up")
        if layer.weight.ndim == 2:
            return functional.linear(functional.linear(inputs, down), up)
        inside = functional.conv2d(inputs, down, None, layer.stride, layer.padding, layer.dilation)
        return functional.conv2d(inside, up)


def _growth(weight: torch.Tensor, change: Change) -> torch.Tensor:
    """By how much of itself each row of the changed weight has to grow to have the length that the DoRA gives it."""
    assert change.magnitude is not None
    own = weight.detach().float().flatten(1)
    whole = own + change.scale * (change.up.to(own.device) @ change.down.flatten(1).to(own.device))
    return change.magnitude.to(own.device) / whole.norm(dim=1) - 1
