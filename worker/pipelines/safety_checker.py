"""The safety checker: judges decoded pixels on the device, as diffusers' does. Knows no job. Imports torch.

An image is flagged if it is more like a concept than the concept's threshold allows: its score is then above 0.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import cosine_distance
from numpy.typing import NDArray
from torch.nn.functional import interpolate

BICUBIC = 3  # Pillow's number for it
SPECIAL_CARE = 0.01  # that all scores of an image grow by if it is like a concept of special care
DIGITS = 3  # of a score


class Verdict(NamedTuple):
    """The safety checker's, on one image.

    The score is the largest of all concepts: cosine less threshold, -2 to 2; `concept` is that concept's number. None
    if nothing judged the image.
    """

    flagged: bool
    unchecked: bool
    score: float | None = None
    concept: int | None = None


class Checker(NamedTuple):
    """A checker of the farm's own; its parts have the names that they have in a pipeline of diffusers."""

    safety_checker: Any
    feature_extractor: Any


UNCHECKED = Verdict(flagged=True, unchecked=True)


@torch.no_grad()
def judge(judged_by: Any, pixels: torch.Tensor) -> list[Verdict]:
    """A verdict for each image; `pixels` are images × height × width × RGB in levels.

    `judged_by` is a Checker, or a pipeline of diffusers, which may have none.

    The flags are those of diffusers, which would convert every image to Pillow's, and tells no score. What the checker
    cannot judge, for it is NaN, is flagged.
    """
    checker = getattr(judged_by, "safety_checker", None)
    if checker is None:
        return [Verdict(False, False)] * len(pixels)
    inputs = clip_input(pixels, judged_by.feature_extractor).to(checker.dtype)
    embeds = checker.visual_projection(checker.vision_model(inputs)[1])
    judged = (embeds.norm(dim=1).isfinite() & _has_numbers(checker)).tolist()
    scores = _scores(checker, embeds)
    return [_verdict(row) if is_judged else UNCHECKED for row, is_judged in zip(scores, judged, strict=True)]


def _verdict(scores: NDArray[np.float32]) -> Verdict:
    concept = int(scores.argmax())
    score = round(float(scores[concept]), DIGITS)
    return Verdict(score > 0, False, score, concept)


def _scores(checker: Any, embeds: torch.Tensor) -> NDArray[np.float32]:
    """Images × concepts. In float32 and rounded, as in diffusers: what its rounding makes 0 is not flagged."""
    special = _excess(embeds, checker.special_care_embeds, checker.special_care_embeds_weights)
    adjustment = np.where((special.round(DIGITS) > 0).any(1, keepdims=True), np.float32(SPECIAL_CARE), np.float32(0))
    return (_excess(embeds, checker.concept_embeds, checker.concept_embeds_weights) + adjustment).round(DIGITS)


def _excess(embeds: torch.Tensor, concepts: torch.Tensor, thresholds: torch.Tensor) -> NDArray[np.float32]:
    """Images × concepts: by how much an image is more like a concept than its threshold."""
    cosines: NDArray[np.float32] = cosine_distance(embeds, concepts).cpu().float().numpy()
    return cosines - thresholds.cpu().float().numpy()


def _has_numbers(checker: Any) -> torch.Tensor:
    """Whether what a safety checker compares images with are numbers: it finds nothing wrong where one is NaN."""
    norms = (checker.concept_embeds.norm(dim=1), checker.special_care_embeds.norm(dim=1))
    limits = (checker.concept_embeds_weights, checker.special_care_embeds_weights)
    return torch.stack([values.isfinite().all() for values in (*norms, *limits)]).all()


def clip_input(pixels: torch.Tensor, extractor: Any) -> torch.Tensor:
    """The safety checker's input, computed on the device. Within one level of what the extractor gives."""
    height, width = pixels.shape[1:3]
    short, crop = extractor.size.shortest_edge, extractor.crop_size
    if not short or extractor.resample != BICUBIC or max(crop.height, crop.width) > short:
        values: torch.Tensor = extractor(list(pixels.cpu().numpy()), return_tensors="pt").pixel_values
        return values.to(pixels.device)
    ratio = short / min(height, width)
    sides = [short if side == min(height, width) else int(side * ratio) for side in (height, width)]
    images = pixels.permute(0, 3, 1, 2).float()
    for size in ((height, sides[1]), (sides[0], sides[1])):  # as Pillow: first the width, in whole levels
        images = interpolate(images, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (sides[0] - crop.height) // 2, (sides[1] - crop.width) // 2
    images = images[:, :, top : top + crop.height, left : left + crop.width] * extractor.rescale_factor
    mean, std = (images.new_tensor(three).view(3, 1, 1) for three in (extractor.image_mean, extractor.image_std))
    return (images - mean) / std
