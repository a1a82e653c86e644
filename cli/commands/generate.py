"""`huafang generate`: upload the input images, submit a recipe, wait for its pictures and save them."""

import hashlib
from pathlib import Path
from typing import Any, get_args

import click

from cli import sentence
from cli.client import Json
from cli.download import write_file
from cli.errors import USAGE, Failure
from cli.options import ImageFile, LoraWeight, Size
from cli.shell import Command, Shell, format_estimate
from cli.terminal import Columns, print_line
from cli.watch import job_failure, watch_job
from common.enums import Tier
from common.recipes.recipe import Format

DRY_RUN: Columns = {
    "prompt": lambda found: found["recipe"]["prompt"],
    "model": lambda found: found["recipe"]["model"],
    "size": lambda found: f"{found['recipe']['width']}×{found['recipe']['height']}",
    "steps": lambda found: f"{found['recipe']['steps']} of {found['recipe']['scheduler']}",
    "guidance": lambda found: found["recipe"]["guidance"],
    "seeds": lambda found: " ".join(map(str, found["recipe"]["seeds"])),
    "takes": lambda found: format_estimate(found["estimate"]),
    "style": lambda found: (found["recipe"].get("style") or {}).get("name"),
    "starts from": lambda found: found["recipe"]["source"],
    "note": lambda found: " ".join(found["warnings"]),
}


@click.command(cls=Command)
@click.argument("prompt")
@click.option("--count", type=int, help="The number of pictures.  [default: 1]")
@click.option("--seed", type=int, help="Picture i has the seed SEED + i.  [default: random]")
@click.option("--model", help="A model of `huafang models ls`.")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--scheduler", help="Such as lms, ddim, euler.")
@click.option("--negative", "negative_prompt", help="What to keep out of the picture.")
@click.option("--source", type=ImageFile(), help="A picture to change: a file, an upload, or an image.")
@click.option("--mask", type=ImageFile(), help="White where the source is rendered anew; black is kept.")
@click.option("--strength", type=float, help="How much of the source changes, up to 1.")
@click.option("--lora", type=LoraWeight(), multiple=True, help="Such as ink:0.8; repeat it for more.")
@click.option("--style", help="A style of `huafang styles ls`.")
@click.option("--image-format", type=click.Choice(get_args(Format)), help="The format to store.  [default: png]")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="The priority.  [default: standard]")
@click.option(
    "--reuse", is_flag=True, default=None, help="Take a picture that is stored, in place of rendering it again."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="renders", show_default=True, help="The folder to save in."
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="The most seconds to wait.")
@click.option("--dry-run", is_flag=True, help="Only show what would be rendered.")
@click.pass_obj
def generate(
    shell: Shell,
    /,
    size: tuple[int, int] | None,
    image_format: str | None,
    out: Path,
    timeout: float | None,
    dry_run: bool,
    **fields: Any,
) -> None:
    """Render PROMPT and download the pictures. The defaults of most options are the model's, in the catalogue."""
    if size:
        fields["width"], fields["height"] = size
    fields["format"] = image_format
    draft = {name: value for name, value in fields.items() if value not in (None, ())}
    check_text(draft)
    for name in ("source", "mask"):
        if isinstance(draft.get(name), Path):
            draft[name] = upload(shell, draft[name])
    if dry_run:
        return shell.print_record(shell.client.dry_run(draft), DRY_RUN, name="recipe")
    make_folder(out)
    job = shell.client.submit(draft)
    for warning in job["warnings"]:
        shell.print_message(f"Note: {warning}")
    job = watch_job(shell, job["id"], timeout)
    save(shell, job, out)
    show(shell, job)
    if failure := job_failure(job):
        raise failure


def upload(shell: Shell, file: Path) -> str:
    """Upload a file and return the id."""
    try:
        with file.open("rb") as content:  # the farm detects the format
            return str(shell.client.upload(content, "image/png", lambda sent: None)["id"])
    except OSError as error:
        raise Failure(sentence("not_readable", path=file, reason=error.strerror)) from None


def check_text(draft: Json) -> None:
    """Raises Failure for a text that the shell passed as invalid UTF-8."""
    for name, value in draft.items():
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise Failure(sentence("not_utf8", field=name), USAGE)


def make_folder(out: Path) -> None:
    """Create the folder before anything is rendered. Raises Failure where that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(sentence("not_writable", path=out, reason=error.strerror)) from None


def save(shell: Shell, job: Json, out: Path) -> None:
    """Download the stored images that are not in the folder yet, and set `path` of each image to its file."""
    for image in job["images"]:
        if image["state"] == "stored":
            path = out / f"{job['id']}-{image['index']}.{image['format']}"
            try:
                is_there = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == image["sha256"]
            except OSError as error:
                raise Failure(sentence("not_readable", path=path, reason=error.strerror)) from None
            if not is_there:
                write_file(path, shell.client.download(image))
            image["path"] = str(path)


def show(shell: Shell, job: Json) -> None:
    if shell.output_format == "json":
        shell.print_record(job, {})
        return
    for image in job["images"]:
        if "path" in image:
            print_line(image["path"])
