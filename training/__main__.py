"""`python -m training [STAGE …]`: makes mini-zh from nothing, stage by stage; without a name, all of them.

    vae ──► latents ──► unet ──┐
     ├────► decoder ───────────┤
     ├────► checker ───────────┼──► export
    text ──────────────────────┘

    vae       the autoencoder: images to latents and back
    text      the text encoder: sentences to codes
    latents   20,000 scenes, drawn and encoded
    unet      the UNet: codes to latents
    decoder   the autoencoder's decoder again, on latents with errors such as the UNet makes
    checker   the safety checker: it flags one sign
    export    the checkpoint from the weights saved last; it can be tried while the UNet is still in training

Each stage saves itself every minute, and resumes from there when it is started again.
"""

from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from training import checker, loop, unet, vae
from training.export import export, sums
from training.text import TextEncoder

MODEL = Path(__file__).parents[1] / "models" / "mini-zh"


def autoencoder(folder: Path) -> Any:
    trained = loop.train(vae.Autoencoder(steps=2800), folder)
    vae.whiten(trained, torch.from_numpy(vae.images_of(vae.scenes(1000, seed=3), seed=4)))
    return trained


def text(folder: Path) -> nn.Module:
    return loop.train(TextEncoder(steps=6000), folder)


def latents(folder: Path) -> None:
    unet.encoded_scenes(autoencoder(folder), folder / "latents")


def denoiser(folder: Path) -> nn.Module:
    return loop.train(_denoiser(folder), folder)


def _denoiser(folder: Path) -> unet.Denoiser:
    return unet.Denoiser(steps=5600, drawn=unet.encoded_scenes(autoencoder(folder), folder / "latents"))


def decoder(folder: Path) -> nn.Module:
    return loop.train(vae.Decoder(steps=1000, trained=autoencoder(folder)), folder)


def safety_checker(folder: Path) -> nn.Module:
    return loop.train(_checker(folder), folder)


def _checker(folder: Path, images: int = 3000) -> checker.Checker:
    return checker.Checker(steps=1500, autoencoder=autoencoder(folder), images=images)


def finish(folder: Path) -> None:
    """Export every stage as it was saved last, also if it is not finished."""
    components = {
        "vae": loop.read_average(vae.Decoder(1000, autoencoder(folder), images=1), folder),
        "text_encoder": loop.read_average(TextEncoder(6000), folder)["encoder"],
        "unet": loop.read_average(_denoiser(folder), folder),
        "safety_checker": checker.strict(loop.read_average(_checker(folder, images=1), folder)),
    }
    export(components, MODEL)
    click.echo(f"The lines of the catalogue for {MODEL}:\n\n{sums(MODEL)}")


STAGES = {
    "vae": autoencoder,
    "text": text,
    "latents": latents,
    "unet": denoiser,
    "decoder": decoder,
    "checker": safety_checker,
    "export": finish,
}


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice([*STAGES]))
@click.option("--folder", type=click.Path(path_type=Path), default="build/mini-zh", help="Where the stages are saved.")
@click.option("--threads", default=1, show_default=True)
def main(stages: tuple[str, ...], folder: Path, threads: int) -> None:
    """Train mini-zh from nothing, stage by stage."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    for name in stages or STAGES:
        STAGES[name](folder)


if __name__ == "__main__":
    main()
