"""The errors in the fields of a recipe: each function returns those of one field or two. Pure."""

from collections.abc import Sequence

from common.catalog.catalog import SCHEDULERS, Model
from common.errors import FieldError
from common.recipes import prompt_weighting, sentence

DIVISOR = 8  # of widths and heights: one latent pixel is 8 × 8 pixels


def prompt_errors(field: str, text: str, *, empty_allowed: bool) -> list[FieldError]:
    if not empty_allowed and not prompt_weighting.strip_weights(text).strip():
        return [FieldError(field, sentence("prompt_empty"))]
    if "\0" in text:
        return [FieldError(field, sentence("prompt_has_nul"))]
    if wrong := prompt_weighting.weight_error(text):
        return [FieldError(field, wrong)]
    return []


def size_errors(width: int, height: int, model: Model) -> list[FieldError]:
    errors = []
    for field, side in (("width", width), ("height", height)):
        if side < model.min_side:
            too_small = sentence("side_too_small", side=side, model=model.name, least=model.min_side)
            errors.append(FieldError(field, too_small))
        elif side % DIVISOR:
            errors.append(FieldError(field, sentence("side_not_divisible", side=side, divisor=DIVISOR)))
    if not errors and (pixels := width * height) > model.max_pixels:
        too_many = sentence("too_many_pixels", pixels=pixels, model=model.name, most=model.max_pixels)
        errors.append(FieldError("width" if width >= height else "height", too_many))
    return errors


def range_errors(field: str, value: float, low: float, high: float) -> list[FieldError]:
    return (
        [] if low <= value <= high else [FieldError(field, sentence("out_of_range", value=value, low=low, high=high))]
    )


def scheduler_errors(scheduler: str) -> list[FieldError]:
    if scheduler in SCHEDULERS:
        return []
    unknown = sentence("scheduler_unknown", scheduler=scheduler, schedulers=", ".join(SCHEDULERS))
    return [FieldError("scheduler", unknown)]


def seed_errors(
    seed: int | None, seeds: Sequence[int] | None, count: int, model: Model, *, is_count_given: bool
) -> list[FieldError]:
    if seeds is None:
        return range_errors("count", count, 1, model.max_count)
    if seed is not None:
        return [FieldError("seeds", sentence("seeds_and_seed"))]
    if is_count_given and count != len(seeds):
        return [FieldError("count", sentence("count_differs", count=count, seeds=len(seeds)))]
    return range_errors("seeds", len(seeds), 1, model.max_count)
