"""Matches each weight of a file with a layer of the model, and says which weights found none.

Names that are no layer's are translated by diffusers' own converter of the family (Flux has one layer in its published
LoRAs where diffusers has three). It drops what it does not know with a warning, or in silence; so the tensors that it
gets remember their names, and what is in none of its results counts as unmatched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from worker.loras.names import Layers, Place, part_of

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Match:
    """The parts of the LoRA by their layers, each with its name in the file; and the names that fit nothing."""

    parts: dict[Place, dict[str, tuple[str, torch.Tensor]]]
    unfit: list[str]


def match(pipe: Any, weights: Weights) -> Match:
    """The match of these weights in which the most of them fit."""
    layers = Layers(pipe)
    direct = _match(layers, weights)
    if not direct.unfit:
        return direct
    return min(direct, _translated(pipe, layers, weights), key=lambda one: len(one.unfit))


def _match(layers: Layers, weights: Weights) -> Match:
    parts: dict[Place, dict[str, tuple[str, torch.Tensor]]] = {}
    unfit = []
    for name, weight in weights.items():
        found = part_of(name)
        place = found and layers.find(found[1])
        if found is None or place is None or found[0] in parts.get(place, {}):
            unfit.append(name)
        else:
            parts.setdefault(place, {})[found[0]] = name, weight
    return Match(parts, unfit)


def _translated(pipe: Any, layers: Layers, weights: Weights) -> Match:
    read: set[str] = set()
    traced = {name: _Traced.of(name, weight, read) for name, weight in weights.items()}
    try:
        results = pipe.lora_state_dict(traced)
    except Exception:  # of another family, or of no format that the converter knows
        return Match({}, list(weights))
    if not isinstance(results, dict) or not all(isinstance(result, _Traced) for result in results.values()):
        return Match({}, list(weights))
    found = _match(layers, results)
    lost = {source for name in found.unfit for source in results[name].sources}
    used = read.union(*(result.sources for result in results.values())) - lost
    parts = {
        place: {part: (name, weight.as_subclass(torch.Tensor)) for part, (name, weight) in of_the_layer.items()}
        for place, of_the_layer in found.parts.items()
    }
    return Match(parts, [name for name in weights if name not in used])


class _Traced(torch.Tensor):
    """A tensor with the names of those that it was computed from."""

    sources: frozenset[str]
    read: set[str]  # the names of all whose numbers were taken out of their tensors, as an alpha's is

    @classmethod
    def of(cls, name: str, weight: torch.Tensor, read: set[str]) -> "_Traced":
        traced = weight.as_subclass(cls)
        traced.sources, traced.read = frozenset({name}), read
        return traced

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        given = [one for arg in args for one in (arg if isinstance(arg, list | tuple) else [arg])]
        origins = [one for one in given if isinstance(one, _Traced) and hasattr(one, "sources")]
        sources = frozenset().union(*(one.sources for one in origins))
        for one in result if isinstance(result, list | tuple) else [result]:
            if isinstance(one, _Traced) and origins:
                one.sources, one.read = sources, origins[0].read
        if func is torch.Tensor.item:
            origins[0].read.update(sources)
        return result
