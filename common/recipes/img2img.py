"""What a recipe starts from, beside its prompt: nothing, a picture to change, or one of which a part is repainted.

Pure: which pictures there are the caller knows, and says it by a function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from common.errors import FieldError

Mode = Literal["text2image", "image2image", "inpaint"]
STRENGTHS = {"image2image": 0.75, "inpaint": 1.0}  # where nobody says one
ABOUT = 0.01  # by how much the shape of a mask may differ from that of its source


class InputImage(BaseModel):
    """A picture to start from: an upload, or an image that was stored. Its bytes have this sha256, under this key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: UUID
    sha256: str
    key: str
    width: int
    height: int


FindImage = Callable[[UUID], InputImage | None]


def find_nothing(picture: UUID) -> None:
    """The Find of who has no pictures."""


@dataclass(frozen=True)
class Img2ImgInputs:
    """What a recipe starts from, and what is wrong with that."""

    mode: Mode
    source: InputImage | None = None
    mask: InputImage | None = None
    strength: float | None = None
    wrong: list[FieldError] = field(default_factory=list)


def resolve_inputs(
    mode: Mode | None, source: UUID | None, mask: UUID | None, strength: float | None, steps: int, find: FindImage
) -> Img2ImgInputs:
    """Which mode nobody says follows from the pictures that are given."""
    mode = mode or ("inpaint" if mask else "image2image" if source else "text2image")
    given = {"source": source, "mask": mask, "strength": strength}
    needed = {"text2image": (), "image2image": ("source",), "inpaint": ("source", "mask")}[mode]
    strange = given.keys() - needed - ({"strength"} if needed else set())
    wrong = [FieldError(name, f"is not for {mode}") for name in given if name in strange and given[name] is not None]
    wrong += [FieldError(name, f"is missing: {mode} needs it") for name in needed if given[name] is None]
    if wrong or not needed:
        return Img2ImgInputs(mode, wrong=wrong)
    found = {name: find(picture) for name in ("source", "mask") if (picture := {"source": source, "mask": mask}[name])}
    wrong += [
        FieldError(name, f"is {given[name]}; neither an upload nor a stored image of yours is that picture")
        for name, original in found.items()
        if original is None
    ]
    chosen = STRENGTHS[mode] if strength is None else float(strength)
    beginning = Img2ImgInputs(mode, found["source"], found.get("mask"), chosen, wrong)
    wrong += [*_strength_errors(chosen, steps), *_shape_errors(beginning)]
    return beginning


def steps_taken(steps: int, strength: float | None) -> int:
    """How many of the steps are taken: the last ones; all of them where there is nothing to start from."""
    return steps if strength is None else min(int(steps * strength), steps)


def _strength_errors(strength: float, steps: int) -> list[FieldError]:
    if not 0 < strength <= 1:
        return [FieldError("strength", f"is {strength:g}; it must be more than 0 and at most 1")]
    if steps > 0 and not steps_taken(steps, strength):
        return [
            FieldError("strength", f"is {strength:g}; of {steps} steps it takes none, so it must be {1 / steps:.3g}")
        ]
    return []


def _shape_errors(beginning: Img2ImgInputs) -> list[FieldError]:
    """A mask may be smaller than its source, but must cover the same of it."""
    source, mask = beginning.source, beginning.mask
    if not source or not mask or abs(mask.width * source.height / (mask.height * source.width) - 1) <= ABOUT:
        return []
    sizes = f"{mask.width}×{mask.height} pixels beside a source of {source.width}×{source.height}"
    return [FieldError("mask", f"has {sizes}; it must have the same shape")]
