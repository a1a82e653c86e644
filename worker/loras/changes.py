"""The change of each layer that a LoRA's weights amount to, checked: sizes, counterparts, numbers, ranks.

A LoHa, (up₁ down₁) ∘ (up₂ down₂), is a LoRA whose rank is the product of both ranks. Without an alpha among the weights
PEFT's settings in the file's header count, and without these alpha is the rank.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any

import torch

from common.catalog.loras import Lora
from common.errors import LoraRefused
from worker.loras import names, sentence
from worker.loras.matching import Match, Weights, match
from worker.loras.names import Place, part_of

MOST_RANK = 2048  # no published one has more than 512
LORA = {"down", "up"}
LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
EXTRAS = {"alpha", "dora_scale", "magnitude"}
FRACTIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
WHOLE_NUMBERS = (torch.int16, torch.int32, torch.int64)  # an alpha may be one
Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to a layer's weight: `scale` × `up` × `down`.

    A DoRA then gives each row of the sum a length of its own, its `magnitude`.
    """

    down: torch.Tensor  # rank × the shape of one output's weights
    up: torch.Tensor  # outputs × rank
    scale: float
    magnitude: torch.Tensor | None  # of each output


def changes(pipe: Any, model: str, lora: Lora, weights: Weights, settings: str | None) -> dict[Place, Change]:
    """The changes of all layers that the file has weights for. Raises LoraRefused unless every weight has its layer."""
    if not hasattr(pipe, "load_lora_weights"):
        raise LoraRefused(sentence("lora_no_loader", lora=lora.name, model=model))
    _check_kind(lora, weights)
    found = match(pipe, weights)
    if unfit := found.unfit:
        raise LoraRefused(
            sentence("lora_unfit", lora=lora.name, model=model, count=len(unfit), all=len(weights), first=unfit[0])
        )
    shapes = {place: _layer(pipe, place).weight.shape for place in found.parts}
    parts = {place: {part: weight for part, (_, weight) in of.items()} for place, of in found.parts.items()}
    _check_parts(model, lora, weights, found, shapes, parts)
    alphas = _Alphas.read(lora, settings, parts)
    return {place: _change(shapes[place], of, alphas.scale(place, of)) for place, of in parts.items()}


def _layer(pipe: Any, place: Place) -> Any:
    return pipe.components[place.component].get_submodule(place.module)


# Checks


def _check_kind(lora: Lora, weights: Weights) -> None:
    if not weights:
        raise LoraRefused(sentence("lora_without_weights", lora=lora.name))
    if kind := names.other_kind(weights):
        raise LoraRefused(sentence("lora_kind", lora=lora.name, kind=kind))
    if not any(part_of(name) for name in weights):
        raise LoraRefused(sentence("lora_no_lora", lora=lora.name, all=len(weights), first=next(iter(weights))))


def _check_parts(
    model: str,
    lora: Lora,
    weights: Weights,
    found: Match,
    shapes: Mapping[Place, torch.Size],
    parts: Mapping[Place, Parts],
) -> None:
    def weights_of(wrong: Iterable[Place]) -> list[str]:
        return [name for place in wrong for name, _ in found.parts[place].values()]

    if alone := weights_of(place for place in parts if parts[place].keys() - EXTRAS not in (LORA, LOHA)):
        raise LoraRefused(
            sentence("lora_incomplete", lora=lora.name, count=len(alone), all=len(weights), first=alone[0])
        )
    if any(_has_lengths_of_inputs(shapes[place], parts[place]) for place in parts):
        raise LoraRefused(sentence("lora_kind", lora=lora.name, kind="DoRA with a length for each input"))
    if other := weights_of(place for place in parts if not _has_sizes_of(shapes[place], parts[place])):
        raise LoraRefused(
            sentence("lora_sizes", lora=lora.name, model=model, count=len(other), all=len(weights), first=other[0])
        )
    if wrong := [name for name, weight in weights.items() if not _is_of_numbers(name, weight)]:
        raise LoraRefused(
            sentence("lora_no_numbers", lora=lora.name, count=len(wrong), all=len(weights), first=wrong[0])
        )
    if (rank := max(max(_ranks(of)) for of in parts.values())) > MOST_RANK:
        raise LoraRefused(sentence("lora_rank", lora=lora.name, rank=rank, most=MOST_RANK))


def _has_sizes_of(shape: torch.Size, parts: Parts) -> bool:
    outputs, inputs = shape[0], prod(shape[1:])
    return (
        all(
            up.ndim > 1 < down.ndim
            and up.shape[0] == outputs
            and up.numel() == outputs * rank > 0
            and down.numel() == rank * inputs
            for up, down, rank in zip(*_factors(parts), _ranks(parts), strict=True)
        )
        and all(parts[part].numel() == outputs for part in ("dora_scale", "magnitude") if part in parts)
        and ("alpha" not in parts or parts["alpha"].numel() == 1)
    )


def _has_lengths_of_inputs(shape: torch.Size, parts: Parts) -> bool:
    """As LyCORIS wrote them once: a row of one length for each input, where today's is a column."""
    lengths = parts.get("dora_scale")
    return lengths is not None and lengths.ndim > 1 and lengths.shape[0] == 1 < shape[0]


def _is_of_numbers(name: str, weight: torch.Tensor) -> bool:
    is_known = weight.dtype in FRACTIONS or (weight.dtype in WHOLE_NUMBERS and name.endswith(".alpha"))
    return is_known and bool(weight.float().isfinite().all())


def _factors(parts: Parts) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The factors on the side of the outputs, and those on the side of the inputs."""
    if "up" in parts:
        return [parts["up"]], [parts["down"]]
    return [parts["hada_w1_a"], parts["hada_w2_a"]], [parts["hada_w1_b"], parts["hada_w2_b"]]


def _ranks(parts: Parts) -> list[int]:
    return [down.shape[0] if down.ndim else 0 for down in _factors(parts)[1]]


# Values


def _change(shape: torch.Size, parts: Parts, scale: float) -> Change:
    ups, downs = ([factor.float() for factor in side] for side in _factors(parts))
    up, down = ups[0].reshape(shape[0], -1), downs[0].reshape(len(downs[0]), -1)
    for other_up, other_down in zip(ups[1:], downs[1:], strict=True):
        up, down = _hadamard(up, down, other_up, other_down)
    magnitude = parts.get("dora_scale", parts.get("magnitude"))
    return Change(down.reshape(-1, *shape[1:]), up, scale, None if magnitude is None else magnitude.float().flatten())


def _hadamard(up_1: torch.Tensor, down_1: torch.Tensor, up_2: torch.Tensor, down_2: torch.Tensor) -> Any:
    """`up` and `down` whose product is (up₁ down₁) ∘ (up₂ down₂), in as few numbers as can be."""
    outputs, inputs, rank = up_1.shape[0], down_1.shape[1], up_1.shape[1] * up_2.shape[1]
    if rank >= min(outputs, inputs):
        whole = (up_1 @ down_1) * (up_2 @ down_2)
        return (torch.eye(outputs), whole) if outputs <= inputs else (whole, torch.eye(inputs))
    up = (up_1[:, :, None] * up_2[:, None, :]).reshape(outputs, rank)
    return up, (down_1[:, None, :] * down_2[None, :, :]).reshape(rank, inputs)


@dataclass(frozen=True)
class _Alphas:
    """PEFT's settings: for each component an alpha, other alphas for some layers, and whether it counts by √rank."""

    settings: Mapping[str, Any]

    @classmethod
    def read(cls, lora: Lora, settings: str | None, places: Iterable[Place]) -> "_Alphas":
        try:
            alphas = cls(json.loads(settings or "{}"))
            numbers = [*alphas._all("lora_alpha"), *(n for one in alphas._all("alpha_pattern") for n in one.values())]
            of_no_layer = [
                layer
                for pattern in alphas._all("alpha_pattern")
                for layer in pattern
                if not any(_is_of(layer, place) for place in places)
            ]
            if of_no_layer or not all(isfinite(number) for number in numbers):
                raise ValueError(f"alphas for {of_no_layer}" if of_no_layer else "an alpha is not finite")
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise LoraRefused(sentence("lora_settings", lora=lora.name, error=error)) from error
        return alphas

    def scale(self, place: Place, parts: Parts) -> float:
        rank = _ranks(parts)[0]
        if "alpha" in parts:
            return float(parts["alpha"]) / rank
        of_layers = self._of(place, "alpha_pattern", {})
        alpha = next((of_layers[layer] for layer in of_layers if _is_of(layer, place)), None)
        alpha = self._of(place, "lora_alpha", rank) if alpha is None else alpha
        return float(alpha / sqrt(rank) if self._of(place, "use_rslora", False) else alpha / rank)

    def _all(self, setting: str) -> list[Any]:
        return [value for name, value in self.settings.items() if name.endswith(f".{setting}") and value is not None]

    def _of(self, place: Place, setting: str, default: Any) -> Any:
        found = self.settings.get(f"{place.component}.{setting}")
        return default if found is None else found


def _is_of(layer: str, place: Place) -> bool:
    """Whether PEFT means this place by a layer's name, which may be the end of it."""
    name = layer.removeprefix("^")
    return place.module == name or place.module.endswith(f".{name}")
