"""`huafang grid`: the same prompts and seeds with several models, styles, schedulers, steps or guidances, side by side.

    a batch with a matrix ──► watch ──► download ──► grid.html and grid.png

Its batch holds all that a grid is made of, so an interrupted grid is resumed by the id of its batch.
"""

import shlex
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TextIO

import click

from cli import sentence
from cli.client import Json, api_path
from cli.commands.generate import check_text, make_folder, save
from cli.download import write_file
from cli.errors import USAGE, Failure, program_name
from cli.options import Size, ValueList
from cli.sheets.comparison import compare, grid_axes
from cli.sheets.contact_sheet import png_of, render_sheet
from cli.sheets.grid_page import render_page
from cli.shell import Command, Shell
from cli.terminal import Columns
from cli.watch import batch_failure, resume_hint, watch_batch
from common.enums import Tier
from common.sentences import printable

MAX_PICTURES = 400  # of a page and a sheet that can still be opened
FIELDS = {"models": "model", "styles": "style", "schedulers": "scheduler", "steps": "steps", "guidance": "guidance"}

MADE: Columns = {
    "page": lambda made: made["page"],
    "sheet": lambda made: made["sheet"],
    "legend": lambda made: made["legend"],
    "pictures": lambda made: made["pictures"],
    "batch": lambda made: made["batch"],
}


@click.command(cls=Command)
@click.option("--prompts", "file", type=click.File(encoding="utf-8"), help="A file with a prompt per line.")
@click.option("--prompt", "texts", metavar="TEXT", multiple=True, help="A prompt; repeat it for more.")
@click.option("--models", type=ValueList(str), help="Models of `huafang models ls`.")
@click.option("--styles", type=ValueList(str), help="Styles of `huafang styles ls`; plain: none.")
@click.option("--schedulers", type=ValueList(str), help="Such as lms,euler.")
@click.option("--steps", type=ValueList(), help="Denoising steps.")
@click.option("--guidance", type=ValueList(), help="How closely to follow the prompts.")
@click.option("--seed", type=int, help="Of the first prompt; each next one has the next seed.  [default: random]")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--negative", "negative_prompt", help="What to keep out of the pictures.")
@click.option("--batch", "batch_id", metavar="ID", help="Resume the grid of this batch.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="grid", show_default=True, help="The folder to save in."
)
@click.pass_obj
def grid(
    shell: Shell,
    /,
    file: TextIO | None,
    texts: tuple[str, ...],
    seed: int | None,
    size: tuple[int, int] | None,
    negative_prompt: str | None,
    batch_id: str | None,
    out: Path,
    **lists: list[Any] | None,
) -> None:
    """Compare one or two of models, styles, schedulers, steps and guidance: render the same prompts and seeds with each
    value, on a page (grid.html) and a contact sheet (grid.png). An option with one value is the same for all pictures.
    """
    if batch_id is None:
        batch_id = submit(shell, read_prompts(file, texts), lists, seed, size, negative_prompt)
    elif file or texts or size or negative_prompt or seed is not None or any(lists.values()):
        raise Failure(sentence("grid_batch_excludes"), USAGE)
    else:
        check_size(shell.client.get(api_path("batches", batch_id)))
    make_folder(out / "pictures")
    resume = f"grid --out {shlex.quote(str(out))} --batch"
    batch = watch_batch(shell, batch_id, resume=resume)
    check_size(batch)
    failure = batch_failure(batch)
    if failure and not batch["jobs"]:
        raise failure
    with resume_hint("batch", f"{resume} {batch_id}", f"batch cancel {batch_id}"):
        shell.print_record(make(shell, batch, out), MADE, name="page")
    if failure:
        raise failure


def read_prompts(file: TextIO | None, texts: Sequence[str]) -> list[str]:
    try:
        lines = [line.strip() for line in file or ()]
    except UnicodeDecodeError:
        raise Failure(sentence("not_utf8", field="file of prompts"), USAGE) from None
    if found := [*filter(None, lines), *texts]:
        return found
    raise Failure(sentence("grid_no_prompts"), USAGE)


def submit(
    shell: Shell,
    prompts: list[str],
    lists: Mapping[str, list[Any] | None],
    seed: int | None,
    size: tuple[int, int] | None,
    negative_prompt: str | None,
) -> str:
    """Submit the batch of a grid; its id."""
    given = {FIELDS[option]: values for option, values in lists.items() if values}
    matrix = {field: values for field, values in given.items() if len(values) > 1}
    if len(matrix) not in (1, 2):
        raise Failure(sentence("grid_axes_needed"), USAGE)
    if (pictures := len(prompts) * prod(map(len, matrix.values()))) > MAX_PICTURES:
        message = sentence("grid_too_large", pictures=pictures, most=MAX_PICTURES, program=program_name())
        raise Failure(message, USAGE)
    width, height = size or (None, None)
    shared = {"negative_prompt": negative_prompt, "width": width, "height": height}
    shared |= {field: values[0] for field, values in given.items() if field not in matrix}
    draft = {
        "prompts": prompts,
        "defaults": {field: value for field, value in shared.items() if value is not None},
        "matrix": matrix,
        "seed": seed,
        "tier": Tier.STANDARD,
        "name": "grid",
    }
    for text in (*prompts, negative_prompt):
        check_text({"prompt": text})
    made = shell.client.submit(draft, "/v1/batches")
    shell.print_message(f"{made['id']} is submitted: {pictures} pictures.")
    return str(made["id"])


def check_size(batch: Json) -> None:
    """Raises Failure for a batch that cannot be a grid; the size of one is unknown until it has expanded."""
    grid_axes(batch)
    if (total := batch["images"]["total"] or 0) > MAX_PICTURES:
        raise Failure(sentence("batch_too_large", batch=batch["id"], pictures=total, most=MAX_PICTURES))


def make(shell: Shell, batch: Json, out: Path) -> Json:
    """Download the pictures, write the page and the sheet, and return their paths."""
    jobs = shell.client.pages("/v1/jobs", limit=batch["jobs"], batch=batch["id"])[::-1]
    shell.print_message(f"downloading {batch['images']['stored']} pictures")
    for job in jobs:
        save(shell, job, out / "pictures")
    comparison = compare(batch, jobs)
    page, sheet, legend = out / "grid.html", out / "grid.png", out / "legend.txt"
    picture, numbered = render_sheet(comparison)
    write_file(page, render_page(comparison, f"画坊 grid, {len(comparison.cells)} pictures"))
    write_file(sheet, png_of(picture, comparison))
    legend.unlink(missing_ok=True)
    if numbered:
        write_file(legend, "".join(f"({n}) {printable(text)}\n" for n, text in enumerate(numbered, 1)).encode())
        shell.print_message(sentence("no_hanzi_font", sheet=sheet, legend=legend))
    made = {"page": str(page), "sheet": str(sheet), "legend": str(legend) if numbered else None}
    return {"batch": batch["id"], "pictures": batch["images"]["stored"], **made}
