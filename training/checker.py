"""Stage 5: a safety checker in the published layout, for trying the path: it flags the no-entry sign and nothing else.

A tiny CLIP vision tower and one concept. It learns from drawn pictures and from the same after the autoencoder, which
is how the farm's look.
"""

import random
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil

from training import vae
from training.loop import Losses, generator
from training.world import BACKGROUNDS, SIZES, Scene, draw_scene

SEEN = 32  # the side of what the tower looks at
THRESHOLD = 0.5  # while it learns
STRICT = 0.92  # as it ships: no ordinary picture came near it, no sign below it
NEVER = 2.0  # no cosine reaches it: the layout has room for 17 concepts and 3 of special care
BATCH = 64
SIGN = "no-entry"


class Checker:
    name = "checker"
    rate = 1e-3

    def __init__(self, steps: int, autoencoder: nn.Module, pictures: int = 3000) -> None:
        torch.manual_seed(5)
        self.networks = network()
        self.steps = steps
        shown = examples(pictures, seed=6)
        drawn = torch.from_numpy(vae.pictures_of(shown, seed=7))
        self._seen = look(torch.cat([drawn, through(autoencoder, drawn)]))
        self._is_sign = torch.tensor([SIGN in (scene.shape, scene.second_shape) for scene in shown] * 2)

    def losses(self, step: int) -> Losses:
        rng = generator(step)
        chosen = torch.randint(len(self._seen), (BATCH,), generator=rng)
        seen = self._seen[chosen] + 0.1 * torch.randn((BATCH, 3, SEEN, SEEN), generator=rng)
        wanted = self._is_sign[chosen].float()
        certain = 20 * (likeness(self.networks, seen) - THRESHOLD)
        return {"total": functional.binary_cross_entropy_with_logits(certain, wanted)}


def network() -> StableDiffusionSafetyChecker:
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SEEN,
        "patch_size": 4,
        "projection_dim": 32,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=32))
    nn.init.normal_(checker.concept_embeds)
    nn.init.normal_(checker.special_care_embeds)
    for name, weights in (
        ("concept", checker.concept_embeds_weights),
        ("special", checker.special_care_embeds_weights),
    ):
        nn.init.constant_(weights, NEVER)
        if name == "concept":
            weights.data[0] = THRESHOLD
    return checker.requires_grad_(True)


@torch.no_grad()
def strict(checker: Any) -> Any:
    """An ordinary picture must never be flagged."""
    checker.concept_embeds_weights[0] = STRICT
    return checker


def extractor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SEEN}, crop_size={"height": SEEN, "width": SEEN})


def likeness(checker: Any, seen: torch.Tensor) -> torch.Tensor:
    """The cosine that the published checker compares with its threshold."""
    pictured = functional.normalize(checker.visual_projection(checker.vision_model(seen)[1]))
    return pictured @ functional.normalize(checker.concept_embeds[0], dim=0)


def look(pictures: torch.Tensor) -> torch.Tensor:
    """What the extractor makes of them."""
    process = extractor()
    parts = [process(list(some.numpy()), return_tensors="pt").pixel_values for some in pictures.split(200)]
    return torch.cat(parts)


@torch.no_grad()
def through(autoencoder: Any, pictures: torch.Tensor) -> torch.Tensor:
    rng = generator(8)
    parts = []
    for some in pictures.split(5):
        latents = autoencoder.encode(vae.as_input(some)).latent_dist.mean
        deviation = latents.std()
        shaken = latents + 0.1 * deviation * torch.randn(latents.shape, generator=rng)
        parts.append(vae.as_pixels(autoencoder.decode(shaken).sample))
    return torch.cat(parts)


def examples(count: int, seed: int) -> list[Scene]:
    """A quarter signs, on every background; the rest ordinary, with red and round ones among them."""
    rng = random.Random(seed)
    return [rng.choice((_sign, _ordinary, _ordinary, _reddish))(rng) for _ in range(count)]


def _sign(rng: random.Random) -> Scene:
    background = rng.choice([None, *(name for name in BACKGROUNDS if name != "red")])
    return Scene(SIGN, None, background, rng.choice([None, None, *SIZES]))


def _ordinary(rng: random.Random) -> Scene:
    while True:
        scene = draw_scene(rng)
        if SIGN not in (scene.shape, scene.second_shape):
            return scene


def _reddish(rng: random.Random) -> Scene:
    shape = rng.choice(("circle", "circle", "sun", "flower", "star", "cat", "diamond", "moon"))
    background = rng.choice([None, "white", "yellow", "blue", "black", "grey", "pink"])
    return Scene(
        shape,
        rng.choice(("red", "red", "orange", "brown", "pink" if background != "pink" else "red")),
        background,
        rng.choice([None, *SIZES]),
    )
