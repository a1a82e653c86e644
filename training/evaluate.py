"""`python -m training.evaluate`: how often mini-zh draws what prompts of unseen patterns describe.

First single objects; then numbers, places, pairs, what is excluded, English, and wordings of our own, by kind.

Renders at the catalogue's defaults with plain diffusers; `training.judge` judges the images.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from common.catalog import catalog
from training import heldout, views
from training.captions import describe, read_tags
from training.drawing import draw
from training.judge import Verdict, judge, look
from training.world import COLOURS, SHAPES, Scene, default_background

CATALOG = Path(__file__).parents[1] / "models" / "catalog.toml"
BATCH = 8
HELD_OUT = "patterns held out from training"


@dataclass(frozen=True)
class Case:
    prompt: str
    object: str
    background: str | None  # None: not named, so white
    shape: str

    @property
    def is_known(self) -> bool:
        """Whether mini-zh can draw it at all; otherwise no image is right."""
        return self.shape in SHAPES and {self.object, self.background or self.object} <= set(COLOURS)

    @property
    def meaning(self) -> str:
        return f"{self.object} {self.shape} on {self.background or default_background(self.object)}"

    def is_right(self, verdict: Verdict) -> dict[str, bool]:
        found = {
            "colour": verdict.colour == self.object,
            "background": verdict.background == (self.background or default_background(self.object)),
            "shape": verdict.shape == self.shape,
        }
        return {**found, "joint": all(found.values())}


def held_out_cases(count: int, seed: int = 2026) -> list[Case]:
    """Prompts with each shape and pattern about equally often, and a background in three of four."""
    rng = random.Random(seed)
    cases: list[Case] = []
    while len(cases) < count:
        shape = SHAPES[:-1][len(cases) % (len(SHAPES) - 1)]
        scene = Scene(shape, rng.choice(COLOURS), rng.choice(COLOURS) if rng.random() < 0.75 else None)
        if scene.colour == (scene.background or default_background(scene.colour)):
            continue
        symbol = "single-on" if scene.background else "single"
        prompt = read_tags(describe(scene, rng, heldout.RULES, symbol))[0]
        cases.append(Case(prompt, str(scene.colour), scene.background, shape))
    return cases


def read_cases(file: Path) -> list[Case]:
    """Read a JSON list, or JSON lines."""
    text = file.read_text("utf-8").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    rows: list[dict[str, Any]] = json.loads(text) if text.startswith("[") else [json.loads(line) for line in lines]
    return [Case(row["prompt"], _named(row["object"]), _named(row.get("background")), row["shape"]) for row in rows]


def _named(colour: Any) -> Any:
    return "grey" if colour == "gray" else colour


def load(folder: Path | None) -> Any:
    for library in (diffusers, transformers):  # they warn about BertModel and the missing safety checker
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(pipe: Any, prompts: list[str], model: catalog.Model, seed: int = 0) -> list[np.ndarray]:
    """One image for each prompt, with consecutive seeds."""
    images: list[np.ndarray] = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        drawn = pipe(
            some,
            width=model.width,
            height=model.height,
            num_inference_steps=model.steps,
            guidance_scale=model.guidance,
            generator=[torch.Generator().manual_seed(seed + first + place) for place in range(len(some))],
            output_type="np",
        ).images
        images += list((drawn * 255).round().astype(np.uint8))
    return images


def rates(cases: list[Case], images: list[np.ndarray]) -> dict[str, float]:
    right = [case.is_right(judge(image)) for case, image in zip(cases, images, strict=True)]
    return {
        name: sum(each[name] for each in right) / max(1, len(right))
        for name in ("colour", "background", "shape", "joint")
    }


def ground_truth(cases: list[Case]) -> list[np.ndarray]:
    """The cases drawn by `training.drawing`, to measure the judge itself."""
    rng = random.Random(7)
    return [draw(Scene(case.shape, case.object, case.background), rng) for case in cases]


def contact_sheet(images: list[np.ndarray], columns: int = 10, side: int = 96) -> Image.Image:
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + 4)), "white")
    for number, image in enumerate(images):
        small = Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (number % columns * (side + 4) + 2, number // columns * (side + 4) + 2))
    return sheet


def show_kinds(pipe: Any, model: catalog.Model, number: int, seed: int, failures: bool) -> None:
    """Print how many prompts of each kind give a picture of their scene, of held-out patterns and freely worded."""
    for source, cases in ((HELD_OUT, views.held_out(number)), ("our own wording", views.freely_worded())):
        images = render(pipe, [case.prompt for case in cases], model, seed)
        click.echo(f"{len(cases)} prompts of {source}")
        for kind, rate in views.rates(cases, images).items():
            click.echo(f"{kind:12} {rate:6.1%}   of {sum(case.kind == kind for case in cases)}")
        if failures:
            for case, image in zip(cases, images, strict=True):
                if not case.is_shown(view := look(image)):
                    click.echo(f"{case.prompt}: {view}")


@click.command()
@click.option(
    "--prompts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON: {prompt, object, background, shape} each.",
)
@click.option("--number", default=240, show_default=True, help="How many held-out prompts.")
@click.option(
    "--model", "folder", type=click.Path(exists=True, path_type=Path), help="A folder; the catalogue's, if not given."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a contact sheet of the first hundred images.")
@click.option("--failures", is_flag=True, help="Print every prompt that failed, and what was recognised.")
@click.option("--json", "as_json", is_flag=True)
def main(
    prompts: Path | None,
    number: int,
    folder: Path | None,
    seed: int,
    sheet: Path | None,
    failures: bool,
    as_json: bool,
) -> None:
    """Measure how often mini-zh draws the colour, the background and the shape of a prompt, and all three."""
    model = catalog.read(CATALOG).get("mini-zh")
    pipe = load(folder or model.source_path)
    cases = read_cases(prompts) if prompts else held_out_cases(number)
    images = render(pipe, [case.prompt for case in cases], model, seed)
    known = [case for case in cases if case.is_known]
    found: dict[str, Any] = {
        "prompts": len(cases),
        **rates(cases, images),
        "judge": rates(known, ground_truth(known)),
    }
    if sheet:
        contact_sheet(images[:100]).save(sheet, quality=80)
    if as_json:
        click.echo(json.dumps(found))
        return
    source = prompts or HELD_OUT
    click.echo(f"{len(cases)} prompts of {source}; {model.steps} steps, guidance {model.guidance}")
    for name in ("colour", "background", "shape", "joint"):
        click.echo(f"{name:12} {found[name]:6.1%}   (the judge on true drawings: {found['judge'][name]:.1%})")
    if failures:
        for case, image in zip(cases, images, strict=True):
            seen = judge(image)
            if not case.is_right(seen)["joint"]:
                click.echo(f"{case.prompt}: {seen.colour} {seen.shape} on {seen.background}, not {case.meaning}")
    if not prompts:
        show_kinds(pipe, model, max(1, number // 6), seed, failures)


if __name__ == "__main__":
    main()
