"""The mode of a recipe, and the images that it starts from: none, a source, or a source and a mask.

Pure: the caller gives a function that finds the images of a tenant.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from common.errors import FieldError
from common.recipes import sentence

Mode = Literal["text2image", "image2image", "inpaint"]
DEFAULT_STRENGTHS = {"image2image": 0.75, "inpaint": 1.0}
MAX_ASPECT_DIFFERENCE = 0.01  # between a mask and its source


class InputImage(BaseModel):
    """An upload or a stored image, in pixels. `key` and `sha256` are those of its bytes in storage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: UUID
    sha256: str
    key: str
    width: int
    height: int


FindImage = Callable[[UUID], InputImage | None]


def find_no_image(image_id: UUID) -> None:
    """The FindImage of a caller that has no images."""


@dataclass(frozen=True)
class Img2ImgInputs:
    """What a recipe starts from, and the errors in it."""

    mode: Mode
    source: InputImage | None = None
    mask: InputImage | None = None
    strength: float | None = None
    errors: list[FieldError] = field(default_factory=list)


def resolve_inputs(
    mode: Mode | None, source: UUID | None, mask: UUID | None, strength: float | None, steps: int, find: FindImage
) -> Img2ImgInputs:
    """Find the images, and fill in the strength. The mode, if it is None, follows from the images that are given."""
    mode = mode or ("inpaint" if mask else "image2image" if source else "text2image")
    given = {"source": source, "mask": mask, "strength": strength}
    needed = {"text2image": (), "image2image": ("source",), "inpaint": ("source", "mask")}[mode]
    unused = given.keys() - needed - ({"strength"} if needed else set())
    errors = [
        FieldError(name, sentence("not_for_mode", mode=mode))
        for name in given
        if name in unused and given[name] is not None
    ]
    errors += [FieldError(name, sentence("needed_by_mode", mode=mode)) for name in needed if given[name] is None]
    if errors or not needed:
        return Img2ImgInputs(mode, errors=errors)
    found = {name: find(image) for name in ("source", "mask") if (image := {"source": source, "mask": mask}[name])}
    errors += [
        FieldError(name, sentence("image_unknown", image=given[name])) for name, image in found.items() if image is None
    ]
    strength = DEFAULT_STRENGTHS[mode] if strength is None else float(strength)
    inputs = Img2ImgInputs(mode, found["source"], found.get("mask"), strength, errors)
    errors += [*_strength_errors(strength, steps), *_shape_errors(inputs)]
    return inputs


def steps_taken(steps: int, strength: float | None) -> int:
    """How many of the steps are taken: the last ones, or all of them for a strength of None."""
    return steps if strength is None else min(int(steps * strength), steps)


def _strength_errors(strength: float, steps: int) -> list[FieldError]:
    if not 0 < strength <= 1:
        return [FieldError("strength", sentence("strength_out_of_range", strength=strength))]
    if steps > 0 and not steps_taken(steps, strength):
        return [FieldError("strength", sentence("strength_too_small", strength=strength, steps=steps, least=1 / steps))]
    return []


def _shape_errors(inputs: Img2ImgInputs) -> list[FieldError]:
    """A mask may be smaller than its source, but must have its aspect ratio."""
    source, mask = inputs.source, inputs.mask
    if not source or not mask:
        return []
    if abs(mask.width * source.height / (mask.height * source.width) - 1) <= MAX_ASPECT_DIFFERENCE:
        return []
    mask_size, source_size = f"{mask.width}×{mask.height}", f"{source.width}×{source.height}"
    return [FieldError("mask", sentence("mask_shape_differs", mask=mask_size, source=source_size))]
