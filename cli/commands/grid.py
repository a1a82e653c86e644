"""`huafang grid`: the same prompts and seeds over models, schedulers, steps or guidance, side by side.

    a batch with a matrix ──► watch ──► download ──► grid.html and grid.png

All that a grid is stands in its batch: one that was interrupted goes on from there.
"""

import shlex
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, TextIO

import click

from cli.batch_watch import outcome, watch_batch
from cli.client import Json, path
from cli.commands.generate import Size, check_folder, check_text, save
from cli.local import called
from cli.options import ValuesType
from cli.sheets.comparison import compare, shown_axes
from cli.sheets.contact_sheet import draw_sheet
from cli.sheets.grid_page import page_of
from cli.shell import Columns, Command, Failure, Shell
from cli.watch import interruptible
from common.enums import Tier

MOST = 400  # pictures that a page and a sheet bear
FIELDS = {"models": "model", "schedulers": "scheduler", "steps": "steps", "guidance": "guidance"}

MADE: Columns = {
    "page": lambda made: made["page"],
    "sheet": lambda made: made["sheet"],
    "legend": lambda made: made["legend"],
    "pictures": lambda made: made["pictures"],
    "batch": lambda made: made["batch"],
}


@click.command(cls=Command)
@click.option("--prompts", "file", type=click.File(encoding="utf-8"), help="A file with a prompt a line.")
@click.option("--prompt", "texts", metavar="TEXT", multiple=True, help="A prompt; as often as you like.")
@click.option("--models", type=ValuesType(str), help="Names of `huafang models ls`.")
@click.option("--schedulers", type=ValuesType(str), help="Such as lms,euler.")
@click.option("--steps", type=ValuesType(), help="Denoising steps.")
@click.option("--guidance", type=ValuesType(), help="How closely to follow the prompts.")
@click.option("--seed", type=int, help="Of the first prompt; the others count on.  [default: drawn by lot]")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--negative", "negative_prompt", help="What to keep out of the pictures.")
@click.option("--batch", "batch_id", metavar="ID", help="Go on with the grid of this batch.")
@click.option("--out", type=click.Path(path_type=Path), default="grid", show_default=True, help="Where to save.")
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
    """Compare models, schedulers, steps or guidance, one or two of them: the same prompts and seeds with each, on a
    page (grid.html) and a contact sheet (grid.png). What has one value only is the same for all.
    """
    if batch_id is None:
        batch_id = submit(shell, prompts_of(file, texts), lists, seed, size, negative_prompt)
    elif file or texts or size or negative_prompt or seed is not None or any(lists.values()):
        raise Failure("--batch goes on with a grid as it is: beside it there is only --out.", 2)
    else:
        check_size(shell.client.get(path("batches", batch_id)))
    check_folder(out / "pictures")
    on = f"grid --out {shlex.quote(str(out))} --batch"
    batch = watch_batch(shell, batch_id, on=on)
    check_size(batch)
    missing = outcome(batch)
    if missing and not batch["jobs"]:
        raise missing
    with interruptible("batch", f"{on} {batch_id}", f"batch cancel {batch_id}"):
        shell.print_record(make(shell, batch, out), MADE, name="page")
    if missing:
        raise missing


def prompts_of(file: TextIO | None, texts: Sequence[str]) -> list[str]:
    try:
        lines = [line.strip() for line in file or ()]
    except UnicodeDecodeError:
        raise Failure("The file of prompts is not UTF-8.", 2) from None
    if found := [*filter(None, lines), *texts]:
        return found
    raise Failure("Which prompts? Give a file with --prompts, or --prompt TEXT.", 2)


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
        raise Failure("Give one or two of --models, --schedulers, --steps, --guidance several values.", 2)
    if (pictures := len(prompts) * prod(map(len, matrix.values()))) > MOST:
        raise Failure(f"That makes {pictures} pictures, and a grid has at most {MOST}; see `{called()} batch`.", 2)
    width, height = size or (None, None)
    same = {"negative_prompt": negative_prompt, "width": width, "height": height}
    same |= {field: values[0] for field, values in given.items() if field not in matrix}
    draft = {
        "prompts": prompts,
        "defaults": {field: value for field, value in same.items() if value is not None},
        "matrix": matrix,
        "seed": seed,
        "tier": Tier.STANDARD,
        "name": "grid",
    }
    for text in (*prompts, negative_prompt):
        check_text({"prompt": text})
    made = shell.client.submit(draft, "/v1/batches")
    shell.note(f"{made['id']} is submitted: {pictures} pictures.")
    return str(made["id"])


def check_size(batch: Json) -> None:
    """Raises Failure for a batch that is no grid; of one that is not expanded yet nobody knows how large it is."""
    shown_axes(batch)
    if (batch["images"]["total"] or 0) > MOST:
        raise Failure(f"Batch {batch['id']} has {batch['images']['total']} pictures, and a grid at most {MOST}.")


def make(shell: Shell, batch: Json, out: Path) -> Json:
    """Download the pictures and lay them out; what was made, and where it lies."""
    jobs = shell.client.pages("/v1/jobs", limit=batch["jobs"], batch=batch["id"])[::-1]
    shell.note(f"downloading {batch['images']['stored']} pictures")
    for job in jobs:
        save(shell, job, out / "pictures")
    comparison = compare(batch, jobs)
    page, sheet, legend = out / "grid.html", out / "grid.png", out / "legend.txt"
    picture, numbered = draw_sheet(comparison)
    try:
        page.write_bytes(page_of(comparison, f"画坊 grid, {len(comparison.cells)} pictures"))
        picture.save(sheet)
        legend.unlink(missing_ok=True)
        if numbered:
            legend.write_text("".join(f"({n}) {text}\n" for n, text in enumerate(numbered, 1)), encoding="utf-8")
    except OSError as error:
        raise Failure(f"Cannot save the grid in {out}: {error.strerror}.") from None
    if numbered:
        shell.note(
            f"No font with hanzi is on this machine: numbers stand for them in {sheet}, and {legend} says for what."
        )
    made = {"page": str(page), "sheet": str(sheet), "legend": str(legend) if numbered else None}
    return {"batch": batch["id"], "pictures": batch["images"]["stored"], **made}
