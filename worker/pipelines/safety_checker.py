"""The safety checker of a model: judges decoded pixels on the device. Knows no job. Imports torch."""

from typing import Any, NamedTuple

import torch
from torch.nn.functional import interpolate

BICUBIC = 3  # Pillow's number for it


class Verdict(NamedTuple):
    """The safety checker's, on one image."""

    flagged: bool
    unchecked: bool


def judge(pipe: Any, pixels: torch.Tensor) -> list[Verdict]:
    """A verdict for each image; `pixels` are images × height × width × RGB in levels.

    Diffusers would convert every image to Pillow's. What the checker cannot judge, for it is NaN, is flagged.
    """
    checker, embeds = pipe.components.get("safety_checker"), list[torch.Tensor]()
    if checker is None:
        return [Verdict(False, False)] * len(pixels)
    inputs = clip_input(pixels, pipe.feature_extractor).to(checker.dtype)
    hook = checker.visual_projection.register_forward_hook(lambda module, given, output: embeds.append(output))
    try:
        flags: list[bool] = checker(images=pixels, clip_input=inputs)[1]  # it also blackens what it flags
    finally:
        hook.remove()
    judged = (embeds[0].norm(dim=1).isfinite() & _has_numbers(checker)).tolist()
    return [Verdict(flag or not is_judged, not is_judged) for flag, is_judged in zip(flags, judged, strict=True)]


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
