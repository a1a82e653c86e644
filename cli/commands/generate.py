"""`huafang generate`: submit a recipe, wait for its pictures, save them. Pictures to start from are uploaded first."""

import hashlib
import re
import uuid
from pathlib import Path
from typing import Any, get_args

import click

from cli.client import Json
from cli.shell import Columns, Command, Failure, Shell
from cli.watch import outcome, watch
from common.enums import Tier
from common.recipes.recipe import Format

TRIED_OUT: Columns = {
    "prompt": lambda found: found["recipe"]["prompt"],
    "model": lambda found: found["recipe"]["model"],
    "size": lambda found: f"{found['recipe']['width']}×{found['recipe']['height']}",
    "steps": lambda found: f"{found['recipe']['steps']} of {found['recipe']['scheduler']}",
    "guidance": lambda found: found["recipe"]["guidance"],
    "seeds": lambda found: " ".join(map(str, found["recipe"]["seeds"])),
    "takes": lambda found: f"{found['estimate']['seconds']} s" if found["estimate"]["seconds"] else None,
    "starts from": lambda found: found["recipe"]["source"],
    "note": lambda found: " ".join(found["warnings"]),
}


class Size(click.ParamType):
    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if not (sides := re.fullmatch(r"(\d{1,5})[x×*](\d{1,5})", str(value))):
            self.fail(f"{value} is no size; write 512x512.", param, ctx)
        return int(sides[1]), int(sides[2])


class Original(click.ParamType):
    """A file of this machine, or the id of what the farm has already."""

    name = "FILE|ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        if Path(value).is_file():
            return Path(value)
        try:
            return str(uuid.UUID(value))
        except ValueError:
            self.fail(f"{value} is neither a file nor the id of an upload or image.", param, ctx)


class Lora(click.ParamType):
    name = "NAME[:WEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Json:
        name, _, weight = str(value).rpartition(":") if ":" in str(value) else (str(value), "", "1")
        try:
            return {"name": name, "weight": float(weight)}
        except ValueError:
            self.fail(f"{weight} is no weight; write {name}:0.8.", param, ctx)


@click.command(cls=Command)
@click.argument("prompt")
@click.option("--count", type=int, help="How many pictures.  [default: 1]")
@click.option("--seed", type=int, help="Picture i is drawn from seed + i.  [default: drawn by lot]")
@click.option("--model", help="A name of `huafang models ls`.")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--scheduler", help="Such as lms, ddim, euler.")
@click.option("--negative", "negative_prompt", help="What to keep out of the picture.")
@click.option("--source", type=Original(), help="A picture to change: a file, an upload, or an image.")
@click.option("--mask", type=Original(), help="White where to repaint the source; all else is kept.")
@click.option("--strength", type=float, help="How much of the source is given up, up to 1.")
@click.option("--lora", type=Lora(), multiple=True, help="As ink:0.8; more than once for more of them.")
@click.option("--image-format", type=click.Choice(get_args(Format)), help="What to store.  [default: png]")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="How urgent it is.  [default: standard]")
@click.option("--out", type=click.Path(path_type=Path), default="renders", show_default=True, help="Where to save.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Give up waiting after that many seconds.")
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
    """Render PROMPT and download the pictures. What is not given comes from the model's entry in the catalogue."""
    if size:
        fields["width"], fields["height"] = size
    fields["format"] = image_format
    draft = {name: value for name, value in fields.items() if value not in (None, ())}
    check_text(draft)
    for name in ("source", "mask"):
        if isinstance(draft.get(name), Path):
            draft[name] = upload(shell, draft[name])
    if dry_run:
        return shell.print_record(shell.client.dry_run(draft), TRIED_OUT, name="recipe")
    check_folder(out)
    job = shell.client.submit(draft)
    for warning in job["warnings"]:
        shell.note(f"Note: {warning}")
    job = watch(shell, job["id"], timeout)
    save(shell, job, out)
    show(shell, job)
    if missing := outcome(job):
        raise missing


def upload(shell: Shell, file: Path) -> str:
    """The id of the upload that it is by now."""
    try:
        with file.open("rb") as content:  # what it is the farm sees from its content
            return str(shell.client.upload(content, "image/png", lambda sent: None)["id"])
    except OSError as error:
        raise Failure(f"Cannot read {file}: {error.strerror}.") from None


def check_text(draft: Json) -> None:
    for name, value in draft.items():
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise Failure(f"The {name} is not valid UTF-8.", 2)


def check_folder(out: Path) -> None:
    """Better now than after the render."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"Cannot save pictures in {out}: {error.strerror}.") from None


def save(shell: Shell, job: Json, out: Path) -> None:
    """Download what is stored and not here yet, by its sha256. `path` of an image is then where it lies."""
    for image in job["images"]:
        if image["state"] == "stored":
            path = out / f"{job['id']}-{image['index']}.{image['format']}"
            try:
                if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != image["sha256"]:
                    path.write_bytes(shell.client.download(image))
            except OSError as error:
                raise Failure(f"Cannot save {path}: {error.strerror}.") from None
            image["path"] = str(path)


def show(shell: Shell, job: Json) -> None:
    if shell.speaks == "json":
        shell.print_record(job, {})
        return
    for image in job["images"]:
        if "path" in image:
            click.echo(image["path"])
