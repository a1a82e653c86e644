"""`python -m training [STAGE …]`: makes mini-zh from nothing, stage by stage; without a name, all of them.

    vae ──► latents ──► unet ──┐
     ├────► decoder ───────────┤
     ├────► checker ───────────┼──► export
    text ──────────────────────┘

    vae       the autoencoder: pictures to latents and back
    text      the text encoder: sentences to codes
    latents   16,000 scenes, drawn and encoded
    unet      the UNet: codes to latents
    decoder   the autoencoder's second half again, made to bear what the UNet gets wrong
    checker   the safety checker: one sign to be flagged
    export    the checkpoint, as it is now: it may be tried while the UNet still learns

Call it again after a break: every stage goes on where it was saved last, at most a minute before.
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
    vae.whiten(trained, torch.from_numpy(vae.pictures_of(vae.scenes(1000, seed=3), seed=4)))
    return trained


def text(folder: Path) -> nn.Module:
    return loop.train(TextEncoder(steps=5000), folder)


def latents(folder: Path) -> None:
    unet.encoded_scenes(autoencoder(folder), folder / "latents")


def painter(folder: Path) -> nn.Module:
    return loop.train(_painter(folder), folder)


def _painter(folder: Path) -> unet.Painter:
    return unet.Painter(steps=4600, drawn=unet.encoded_scenes(autoencoder(folder), folder / "latents"))


def decoder(folder: Path) -> nn.Module:
    return loop.train(vae.Decoder(steps=1000, trained=autoencoder(folder)), folder)


def safety_checker(folder: Path) -> nn.Module:
    return loop.train(_checker(folder), folder)


def _checker(folder: Path, pictures: int = 3000) -> checker.Checker:
    return checker.Checker(steps=1500, autoencoder=autoencoder(folder), pictures=pictures)


def finish(folder: Path) -> None:
    """Stages that are not finished are exported as they were saved last."""
    parts = {
        "vae": loop.read_average(vae.Decoder(1000, autoencoder(folder), pictures=1), folder),
        "text_encoder": loop.read_average(TextEncoder(5000), folder)["encoder"],
        "unet": loop.read_average(_painter(folder), folder),
        "safety_checker": checker.strict(loop.read_average(_checker(folder, pictures=1), folder)),
    }
    export(parts, MODEL)
    click.echo(f"The lines of the catalogue for {MODEL}:\n\n{sums(MODEL)}")


STAGES = {
    "vae": autoencoder,
    "text": text,
    "latents": latents,
    "unet": painter,
    "decoder": decoder,
    "checker": safety_checker,
    "export": finish,
}


@click.command()
@click.argument("stages", nargs=-1, type=click.Choice([*STAGES]))
@click.option("--folder", type=click.Path(path_type=Path), default="build/mini-zh", help="Where it is saved meanwhile.")
@click.option("--threads", default=1, show_default=True)
def main(stages: tuple[str, ...], folder: Path, threads: int) -> None:
    """Train mini-zh from nothing, stage by stage."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    for name in stages or STAGES:
        STAGES[name](folder)


if __name__ == "__main__":
    main()
