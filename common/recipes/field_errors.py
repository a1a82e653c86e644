"""The errors in the fields of a recipe: each function returns those of one field or two. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from common.catalog.catalog import Model
from common.catalog.styles import PLAIN, Style
from common.errors import FieldError
from common.recipes import prompt_weighting, sentence

MAX_STEPS = {"lcm": 50, "tcd": 50}  # they take theirs from the steps that a model was distilled with, which are 50


def prompt_errors(field: str, text: str, model: Model, *, empty_allowed: bool) -> list[FieldError]:
    if not empty_allowed and not prompt_weighting.strip_weights(text).strip():
        return [FieldError(field, sentence("prompt_empty"))]
    if "\0" in text:
        return [FieldError(field, sentence("prompt_has_nul"))]
    if not model.facts.weighted and prompt_weighting.has_weights(text):
        return [FieldError(field, sentence("weights_not_read", model=model.name))]
    if wrong := prompt_weighting.weight_error(text):
        return [FieldError(field, wrong)]
    return []


def family_errors(negative_prompt: str, guidance: float, mode: str, model: Model) -> list[FieldError]:
    """The errors in what the model's family ignores: nothing that a user asks for is left out in silence."""
    errors = []
    if negative_prompt and not _reads_negative_prompts(model):
        errors.append(FieldError("negative_prompt", sentence("negative_prompt_not_read", model=model.name)))
    if not model.guided and guidance != model.guidance:
        errors.append(FieldError("guidance", sentence("guidance_not_read", model=model.name, guidance=model.guidance)))
    if mode not in model.facts.modes:
        modes = ", ".join(model.facts.modes)
        errors.append(FieldError("mode", sentence("mode_unknown", mode=mode, model=model.name, modes=modes)))
    return errors


def size_errors(width: int, height: int, model: Model) -> list[FieldError]:
    errors, divisor = [], model.facts.size_multiple
    for field, side in (("width", width), ("height", height)):
        if side < model.min_side:
            too_small = sentence("side_too_small", side=side, model=model.name, least=model.min_side)
            errors.append(FieldError(field, too_small))
        elif side % divisor:
            errors.append(FieldError(field, sentence("side_not_divisible", side=side, divisor=divisor)))
    if not errors and (pixels := width * height) > model.max_pixels:
        too_many = sentence("too_many_pixels", pixels=pixels, model=model.name, most=model.max_pixels)
        errors.append(FieldError("width" if width >= height else "height", too_many))
    return errors


def range_errors(field: str, value: float, low: float, high: float) -> list[FieldError]:
    return (
        [] if low <= value <= high else [FieldError(field, sentence("out_of_range", value=value, low=low, high=high))]
    )


def steps_errors(steps: int, scheduler: str, model: Model) -> list[FieldError]:
    if errors := range_errors("steps", steps, 1, model.max_steps):
        return errors
    if steps > (most := MAX_STEPS.get(scheduler, steps)):
        return [FieldError("steps", sentence("too_many_steps", steps=steps, scheduler=scheduler, most=most))]
    return []


def scheduler_errors(scheduler: str, model: Model) -> list[FieldError]:
    known = model.facts.schedulers
    if scheduler in known:
        return []
    unknown = sentence("scheduler_unknown", scheduler=scheduler, schedulers=", ".join(known))
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


def style_errors(name: str | None, prompt: str, styles: Mapping[str, Style], model: Model) -> Iterator[FieldError]:
    """Also those of the completed prompt, where the written one has none."""
    if name in (None, PLAIN):
        return
    if name not in styles:
        yield FieldError("style", sentence("style_unknown", style=name, styles=", ".join([PLAIN, *styles])))
        return
    if styles[name].negative and not _reads_negative_prompts(model):
        yield FieldError("style", sentence("style_negative_not_read", style=name, model=model.name))
    if not prompt_errors("prompt", prompt, model, empty_allowed=False):
        for error in prompt_errors("prompt", styles[name].use.prompt(prompt), model, empty_allowed=True):
            yield FieldError("style", sentence("style_prompt_wrong", style=name, reason=error.message))


def _reads_negative_prompts(model: Model) -> bool:
    return model.guided and model.facts.negative_prompt != "no"
