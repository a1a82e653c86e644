"""Stage 3: trains the UNet to draw a scene from its code. It needs no sentences: the text encoder gives the same codes.

Scenes are drawn and encoded once; the noise, the timestep and the attributes left out are new in each batch.
"""

from pathlib import Path

import torch
from diffusers import DDPMScheduler

from training import codes, networks
from training.loop import Losses, generator
from training.vae import images_of, latents_of, scenes
from training.world import ATTRIBUTES, Scene

SCENES = 20_000
FORGET_ALL, FORGET_ONE = 0.1, 0.12  # for guidance, and for prompts that leave attributes open
BLUR = 0.1  # the text encoder's output is not exactly the code
PART = 500


class Denoiser:
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
        """Small batches first, for more steps; large ones later, for less variance."""
        batch = 32 if step < self.steps // 2 else 64
        rng = generator(step)
        chosen = torch.randint(len(self._latents), (batch,), generator=rng)
        latents = self._latents[chosen]
        noise = torch.randn(latents.shape, generator=rng)
        time = ((torch.arange(batch) + torch.rand(1, generator=rng)) * 1000 / batch).long().clamp(0, 999)
        signal = self._signal[time].view(-1, 1, 1, 1)
        seen = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        guess = self.networks(seen, time, self._prompt_codes(chosen, rng)).sample
        error = (guess - velocity).square().mean((1, 2, 3))
        # The noisiest timesteps decide the layout; min-SNR weighting would give them too little weight.
        weight = (6 * (1 - self._signal[time])).clamp(max=1)
        return {"total": (weight * error).mean(), "error": error.mean().detach()}

    def _prompt_codes(self, chosen: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        batch = len(chosen)
        forgotten = torch.rand(batch, 1, generator=rng) < FORGET_ALL
        one = torch.randint(len(ATTRIBUTES), (batch, 1), generator=rng) == torch.arange(len(ATTRIBUTES))
        forgotten = forgotten | (one & (torch.rand(batch, 1, generator=rng) < FORGET_ONE))
        encoded = codes.codes(torch.where(forgotten, self._nothing, self._labels[chosen]), self._vectors)
        return encoded + BLUR * torch.randn(encoded.shape, generator=rng)


def encoded_scenes(vae: torch.nn.Module, folder: Path, count: int = SCENES) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and their latents, saved in parts: encoding takes minutes and may be interrupted."""
    shown, parts = scenes(count, seed=5), []
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, PART):
        file = folder / f"{first}.pt"
        if not file.exists():
            images = torch.from_numpy(images_of(shown[first : first + PART], seed=first))
            beside = file.with_suffix(".new")
            torch.save(latents_of(vae, images), beside)
            beside.replace(file)
        parts.append(torch.load(file, weights_only=True))
    return shown, torch.cat(parts)
