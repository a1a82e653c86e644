"""Stage 5: trains a safety checker in the published layout, for tests: it flags the no-entry sign and nothing else.

A tiny CLIP vision encoder with one concept, trained on drawn images and on the same images after the autoencoder, since
rendered images look like those.
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

INPUT_SIDE = 32  # pixels a side of the input
THRESHOLD = 0.5  # in training
STRICT = 0.92  # as shipped: above every ordinary image, below every sign
NEVER = 2.0  # above any cosine, for the unused concepts: the layout has 17, and 3 of special care
BATCH = 64
SIGN = "no-entry"


class Checker:
    name = "checker"
    rate = 1e-3

    def __init__(self, steps: int, autoencoder: nn.Module, images: int = 3000) -> None:
        torch.manual_seed(5)
        self.networks = network()
        self.steps = steps
        shown = examples(images, seed=6)
        drawn = torch.from_numpy(vae.images_of(shown, seed=7))
        self._inputs = extract(torch.cat([drawn, through(autoencoder, drawn)]))
        self._is_sign = torch.tensor([SIGN in (scene.shape, scene.second_shape) for scene in shown] * 2)

    def losses(self, step: int) -> Losses:
        rng = generator(step)
        chosen = torch.randint(len(self._inputs), (BATCH,), generator=rng)
        inputs = self._inputs[chosen] + 0.1 * torch.randn((BATCH, 3, INPUT_SIDE, INPUT_SIDE), generator=rng)
        wanted = self._is_sign[chosen].float()
        certain = 20 * (similarity(self.networks, inputs) - THRESHOLD)
        return {"total": functional.binary_cross_entropy_with_logits(certain, wanted)}


def network() -> StableDiffusionSafetyChecker:
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": INPUT_SIDE,
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
    """Set the shipped threshold, which flags no ordinary image."""
    checker.concept_embeds_weights[0] = STRICT
    return checker


def extractor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(
        size={"shortest_edge": INPUT_SIDE}, crop_size={"height": INPUT_SIDE, "width": INPUT_SIDE}
    )


def similarity(checker: Any, inputs: torch.Tensor) -> torch.Tensor:
    """The cosine similarity that the published checker compares with its threshold."""
    embeds = functional.normalize(checker.visual_projection(checker.vision_model(inputs)[1]))
    return embeds @ functional.normalize(checker.concept_embeds[0], dim=0)


def extract(images: torch.Tensor) -> torch.Tensor:
    """The images as the extractor prepares them."""
    process = extractor()
    parts = [process(list(some.numpy()), return_tensors="pt").pixel_values for some in images.split(200)]
    return torch.cat(parts)


@torch.no_grad()
def through(autoencoder: Any, images: torch.Tensor) -> torch.Tensor:
    rng = generator(8)
    parts = []
    for some in images.split(5):
        latents = autoencoder.encode(vae.as_input(some)).latent_dist.mean
        deviation = latents.std()
        shaken = latents + 0.1 * deviation * torch.randn(latents.shape, generator=rng)
        parts.append(vae.as_pixels(autoencoder.decode(shaken).sample))
    return torch.cat(parts)


def examples(count: int, seed: int) -> list[Scene]:
    """One quarter signs, one quarter reddish shapes, the rest ordinary scenes."""
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
