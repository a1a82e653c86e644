"""Stage 3: the UNet learns to draw a scene from its code. It never sees a sentence: the code is what sentences come to.

Scenes are drawn and encoded once; noise, step and what is left unsaid are new each time.
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from training import codes, networks
from training.loop import Losses, generator
from training.vae import latents_of, pictures_of, scenes
from training.world import ATTRIBUTES, Scene

SCENES = 16_000
FORGET_ALL, FORGET_ONE = 0.1, 0.12  # guidance needs the first, prompts that say little the second
BLUR = 0.1  # the text encoder's sayings are not quite the codes
PART = 500


class Painter:
    name = "unet"
    rate = 1.5e-3

    def __init__(self, steps: int, drawn: tuple[list[Scene], torch.Tensor]) -> None:
        torch.manual_seed(3)
        self.networks = networks.unet()
        self.steps = steps
        shown, self._latents = drawn
        self._labels = torch.tensor([codes.labels(scene) for scene in shown])
        self._vectors = codes.tables()
        self._nothing = torch.tensor(codes.no_labels())
        self._signal = DDPMScheduler(**networks.NOISE).alphas_cumprod

    def losses(self, step: int) -> Losses:
        """Small batches first, for many steps; large ones later, for quiet ones."""
        batch = 32 if step < self.steps // 2 else 64
        rng = generator(step)
        chosen = torch.randint(len(self._latents), (batch,), generator=rng)
        latents = self._latents[chosen]
        noise = torch.randn(latents.shape, generator=rng)
        time = ((torch.arange(batch) + torch.rand(1, generator=rng)) * 1000 / batch).long().clamp(0, 999)
        signal = self._signal[time].view(-1, 1, 1, 1)
        seen = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        guess = self.networks(seen, time, self._said(chosen, rng)).sample
        error = (guess - velocity).square().mean((1, 2, 3))
        # The steps of much noise decide the layout: min-SNR weighting would starve them.
        weight = (6 * (1 - self._signal[time])).clamp(max=1)
        return {"total": (weight * error).mean(), "error": error.mean().detach()}

    def _said(self, chosen: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        batch = len(chosen)
        forgotten = torch.rand(batch, 1, generator=rng) < FORGET_ALL
        one = torch.randint(len(ATTRIBUTES), (batch, 1), generator=rng) == torch.arange(len(ATTRIBUTES))
        forgotten = forgotten | (one & (torch.rand(batch, 1, generator=rng) < FORGET_ONE))
        said = codes.codes(torch.where(forgotten, self._nothing, self._labels[chosen]), self._vectors)
        return said + BLUR * torch.randn(said.shape, generator=rng)


def encoded_scenes(vae: torch.nn.Module, folder: Path, count: int = SCENES) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and their latents, kept in parts: encoding takes minutes, and may be broken off."""
    shown, parts = scenes(count, seed=5), []
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, PART):
        file = folder / f"{first}.pt"
        if not file.exists():
            pictures = torch.from_numpy(pictures_of(shown[first : first + PART], seed=first))
            beside = file.with_suffix(".new")
            torch.save(latents_of(vae, pictures), beside)
            beside.replace(file)
        parts.append(torch.load(file, weights_only=True))
    return shown, torch.cat(parts)
