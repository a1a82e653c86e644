"""`huafang batch`: submit a file of prompts, list, watch, pause, resume, cancel, draw again what failed."""

import json
import re
from typing import Any, BinaryIO

import click

from cli.batch_watch import duration, fates, outcome, watch_batch
from cli.client import Json, path
from cli.commands.generate import Size, check_text
from cli.options import Lists, ListsType, matrix_of
from cli.prompt_upload import Prompts, try_out, upload_of
from cli.shell import Columns, Group, Row, Shell
from common.enums import Tier


def pictures(batch: Row) -> str:
    total = batch["images"]["total"]
    return f"{batch['images']['stored']}/{'?' if total is None else total}"


def why(batch: Row) -> str | None:
    if batch["error"]:
        return str(batch["error"]["message"])
    return "It was cancelled." if batch["cancelled_at"] else batch["paused_because"]


def rule(batch: Row) -> str | None:
    stop = batch["stop_rule"]
    return f"at more than {stop['percent']:g} % of its last {stop['of_last']} images" if stop else None


def skipped(batch: Row) -> str | None:
    if not batch["skipped"]:
        return None
    named = [f"line {one['line']}: {one['reason']}" for one in batch["skips"][:3]]
    return f"{batch['skipped']} ({' '.join(named)}{' …' if batch['skipped'] > 3 else ''})"


ROW: Columns = {
    "id": lambda batch: batch["id"],
    "name": lambda batch: batch["name"],
    "state": lambda batch: batch["state"],
    "stored": pictures,
    "why": why,
    "model": lambda batch: batch["model"],
    "tier": lambda batch: batch["tier"],
    "created": lambda batch: batch["created_at"],
}
RECORD: Columns = {
    **ROW,
    "prompts": lambda batch: batch["prompts"],
    "pictures": fates,
    "a prompt": lambda batch: batch["images_per_prompt"] * batch["variants"],
    "seed": lambda batch: batch["seed"],
    "skipped": skipped,
    "note": lambda batch: " ".join(batch["warnings"][:3]) + (" …" if batch["warned"] > 3 else ""),
    "stops": rule,
    "retry of": lambda batch: batch["parent_id"],
    "retried in": lambda batch: batch["retry_id"],
    "a minute": lambda batch: batch["images_per_minute"],
    "takes": lambda batch: duration(batch["eta_seconds"]),
    "finished": lambda batch: batch["finished_at"],
}


class StopAt(click.ParamType):
    """20%/50: more than 20 % of the last 50."""

    name = "PERCENT/LAST"

    def convert(self, given: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?%?/(\d+)", str(given))
        if not found:
            self.fail(f"{given} is none; write 20%/50 for more than 20 % of the last 50 images.", param, ctx)
        return {"percent": float(found[1]), "of_last": int(found[2])}


@click.group(cls=Group)
def batch() -> None:
    """Batches of your tenant: many prompts in one file."""


@batch.command()
@click.argument("prompts", metavar="FILE|ID", type=Prompts())
@click.option("--images-per-prompt", type=int, help="Each with a seed of its own.  [default: 1]")
@click.option("--seed", type=int, help="Of the first picture; the others count on.  [default: drawn by lot]")
@click.option("--model", help="A name of `huafang models ls`.")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How closely to follow the prompts.")
@click.option("--scheduler", help="Such as lms, ddim, euler.")
@click.option("--negative", "negative_prompt", help="What to keep out of the pictures.")
@click.option("--matrix", "lists", type=ListsType(), multiple=True, help="Each prompt with each of them; see below.")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="How urgent it is.  [default: bulk]")
@click.option("--name", help="What you call it.")
@click.option(
    "--stop-at", "stop_rule", type=StopAt(), help="Pause when more of its last images failed or were flagged."
)
@click.option("--skip-bad", is_flag=True, help="Leave out what cannot be rendered, in place of refusing all.")
@click.option("--dry-run", is_flag=True, help="Only show what it would become; the file is uploaded for that.")
@click.option("--watch", "is_watched", is_flag=True, help="Watch it until it has ended.")
@click.pass_obj
def submit(
    shell: Shell,
    /,
    prompts: BinaryIO | str,
    images_per_prompt: int | None,
    seed: int | None,
    tier: str | None,
    name: str | None,
    stop_rule: dict[str, Any] | None,
    size: tuple[int, int] | None,
    skip_bad: bool,
    dry_run: bool,
    is_watched: bool,
    lists: tuple[Lists, ...],
    **fields: Any,
) -> None:
    """Submit the prompts of FILE: a prompt a line (.txt, or - for what comes on stdin), JSON objects (.jsonl), or a
    sheet with a column prompt or 提示词 (.csv, .parquet). All but .txt may have other fields of a recipe too. What
    neither they nor the options say comes from the model's entry in the catalogue. ID is an upload: a --dry-run names
    the one it has made.

    With --matrix each prompt is drawn with each of several values, from the same seeds; several --matrix multiply.
    `--matrix steps=20,50` has two, and `--matrix model:scheduler=zh-v0:lms,zh-v1:pndm` two pairs.
    """
    if size:
        fields["width"], fields["height"] = size
    given = {"images_per_prompt": images_per_prompt, "seed": seed, "tier": tier, "name": name, "stop_rule": stop_rule}
    defaults = {field: value for field, value in fields.items() if value is not None}
    draft = {"defaults": defaults, **{field: value for field, value in given.items() if value is not None}}
    if lists:
        draft["matrix"] = matrix_of(lists)
    if skip_bad:
        draft["skip_bad"] = True
    check_text({**defaults, **draft})
    draft["upload"] = upload_of(shell, prompts)
    if dry_run:
        return try_out(shell, draft)
    made = shell.client.submit(draft, "/v1/batches")
    if is_watched:
        shell.note(f"{made['id']} is submitted.")
        return end(shell, watch_batch(shell, made["id"]))
    shell.print_record(made, RECORD)


@batch.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most that many.")
@click.pass_obj
def ls(shell: Shell, limit: int) -> None:
    """List batches, the newest first."""
    shell.print_rows(shell.client.pages("/v1/batches", limit), ROW)


@batch.command("watch")
@click.argument("batch_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Give up waiting after that many seconds.")
@click.pass_obj
def watch_(shell: Shell, batch_id: str, timeout: float | None) -> None:
    """Watch a batch until it has ended. With --format json, or into a pipe: a line of JSON each time it has changed."""
    if shell.speaks != "json":
        return end(shell, watch_batch(shell, batch_id, timeout))
    if missing := outcome(watch_batch(shell, batch_id, timeout, hear=print_line)):
        raise missing


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def pause(shell: Shell, batch_id: str) -> None:
    """Begin nothing more of a batch; what is being rendered is finished."""
    change(shell, batch_id, "pause")


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def resume(shell: Shell, batch_id: str) -> None:
    """Let a paused batch go on."""
    change(shell, batch_id, "resume")


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def cancel(shell: Shell, batch_id: str) -> None:
    """End a batch at once and for good; what is stored stays."""
    change(shell, batch_id, "cancel")


@batch.command("retry-failed")
@click.argument("batch_id", metavar="ID")
@click.option("--watch", "is_watched", is_flag=True, help="Watch it until it has ended.")
@click.pass_obj
def retry_failed(shell: Shell, batch_id: str, is_watched: bool) -> None:
    """Draw again what failed of a batch that has ended, as a new batch with the same recipes and seeds."""
    made = shell.client.post(path("batches", batch_id, "retry-failed"))
    if is_watched:
        shell.note(f"{made['id']} draws again what failed.")
        return end(shell, watch_batch(shell, made["id"]))
    shell.print_record(made, RECORD)


def change(shell: Shell, batch_id: str, verb: str) -> None:
    shell.print_record(shell.client.post(path("batches", batch_id, verb)), RECORD)


def end(shell: Shell, batch: Json) -> None:
    """Show a batch that has ended. Raises Failure when not all of its pictures are there."""
    shell.print_record(batch, RECORD)
    if missing := outcome(batch):
        raise missing


def print_line(batch: Json) -> None:
    click.echo(json.dumps(batch, ensure_ascii=False))
