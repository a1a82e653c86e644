"""Stage 1: trains the autoencoder on crops of images, and encodes whole images for the UNet.

Its latents get some noise in training, so that the decoder tolerates the errors of a UNet.
"""

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from training import networks
from training.drawing import draw
from training.loop import Losses, generator
from training.world import Scene, draw_scene

PIECE = 64
BATCH = 16
SHAKE = 0.12  # of the latents' own deviation


class Autoencoder:
    name = "vae"
    rate = 2.5e-3

    def __init__(self, steps: int, images: int = 6000) -> None:
        torch.manual_seed(1)
        self.networks: AutoencoderKL = networks.autoencoder()
        self.steps = steps
        self._images = torch.from_numpy(images_of(scenes(images, seed=1), seed=2))

    def losses(self, step: int) -> Losses:
        rng = random.Random(step)
        pieces = as_input(torch.stack([self._piece(rng) for _ in range(BATCH)]))
        noise = torch.randn(2, BATCH, 4, PIECE // 8, PIECE // 8, generator=generator(step))
        return self._pass(pieces, noise)

    def _pass(self, pieces: torch.Tensor, noise: torch.Tensor) -> Losses:
        posterior = self.networks.encode(pieces).latent_dist
        latents = posterior.mean + posterior.std * noise[0]
        shaken = latents + SHAKE * latents.detach().std() * noise[1]
        drawn = self.networks.decode(shaken).sample
        l1, l2 = functional.l1_loss(drawn, pieces), functional.mse_loss(drawn, pieces)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        return {"total": l1 + 2 * l2 + 1e-4 * kl, "l1": l1.detach(), "l2": l2.detach(), "kl": kl.detach()}

    def _piece(self, rng: random.Random) -> torch.Tensor:
        """A random crop, if possible not of the background alone."""
        for _ in range(4):
            image = self._images[rng.randrange(len(self._images))]
            x, y = rng.randrange(networks.SIDE - PIECE + 1), rng.randrange(networks.SIDE - PIECE + 1)
            piece = image[y : y + PIECE, x : x + PIECE]
            if int(piece.amax((0, 1)).sub(piece.amin((0, 1))).max()) > 20:
                break
        return piece


def scenes(count: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng) for _ in range(count)]


def images_of(shown: list[Scene], seed: int) -> np.ndarray:
    rng = random.Random(seed)
    return np.stack([draw(scene, rng) for scene in shown])


def as_input(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(drawn: torch.Tensor) -> torch.Tensor:
    return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def whiten(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 after the usual scaling, by changing two 1×1 convolutions.

    Published autoencoders are close to that by themselves. This one is not, and the UNet would have to learn it.
    """
    latents = torch.cat([vae.encode(as_input(some)).latent_dist.mean for some in images.split(5)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    scale = 1 / (deviation * networks.SCALING)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= scale.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * scale
    quant.bias[4:] += 2 * scale.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= scale.view(1, 4, 1, 1)


@torch.no_grad()
def latents_of(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The scaled latents of the images, as the UNet gets them."""
    encoded = [vae.encode(as_input(some)).latent_dist.mean for some in images.split(5)]
    return torch.cat(encoded) * networks.SCALING


class Decoder:
    """Stage 4: trains the decoder further, on whole images and noisy latents. The encoder stays as it is."""

    name = "decoder"
    rate = 1e-3

    def __init__(self, steps: int, trained: AutoencoderKL, images: int = 3000) -> None:
        self.steps = steps
        self.networks = trained.requires_grad_(False)
        for part in (trained.post_quant_conv, trained.decoder):
            part.requires_grad_(True)
        self._images = torch.from_numpy(images_of(scenes(images, seed=9), seed=10))
        self._latents = latents_of(trained, self._images)

    def losses(self, step: int) -> Losses:
        rng = generator(step)
        chosen = torch.randint(len(self._latents), (4,), generator=rng)
        amount = 0.2 * torch.rand((4, 1, 1, 1), generator=rng)
        latents = self._latents[chosen] + amount * torch.randn((4, *self._latents.shape[1:]), generator=rng)
        drawn, wanted = self.networks.decode(latents / networks.SCALING).sample, as_input(self._images[chosen])
        l1, l2 = functional.l1_loss(drawn, wanted), functional.mse_loss(drawn, wanted)
        return {"total": l1 + 2 * l2, "l1": l1.detach(), "l2": l2.detach()}
