"""`huafang batch`: submit a file of prompts, list, watch, pause, resume, cancel, retry what failed, delete."""

from collections.abc import Sequence
from typing import Any

import click

from cli import sentence
from cli.client import Json, api_path
from cli.commands.generate import check_text
from cli.commands.rm import WAIT, confirm, remove
from cli.options import FieldColumn, FieldValueList, FieldValues, KeptColumns, Size, StopRule, build_matrix
from cli.prompt_files.sources import find_sources, name_of
from cli.prompt_files.upload import dry_run_batches, upload_prompts
from cli.shell import Group, Shell, format_duration
from cli.terminal import Columns, Row, print_json
from cli.watch import batch_failure, count_images, watch_batch
from common.enums import Tier
from common.prompt_files.formats import FORMATS

MAX_NAME = 200  # characters, as the farm takes them


def pictures(batch: Row) -> str:
    total = batch["images"]["total"]
    return f"{batch['images']['stored']}/{'?' if total is None else total}"


def why(batch: Row) -> str | None:
    if batch["error"]:
        return str(batch["error"]["message"])
    return sentence("was_cancelled") if batch["cancelled_at"] else batch["paused_because"]


def describe_stop_rule(batch: Row) -> str | None:
    stop = batch["stop_rule"]
    return f"at more than {stop['percent']:g} % of its last {stop['of_last']} images" if stop else None


def skipped(batch: Row) -> str | None:
    if not batch["skipped"]:
        return None
    lines = [f"line {one['line']}: {one['reason']}" for one in batch["skips"][:3]]
    return f"{batch['skipped']} ({' '.join(lines)}{' …' if batch['skipped'] > 3 else ''})"


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
    "pictures": count_images,
    "a prompt": lambda batch: batch["images_per_prompt"] * batch["variants"],
    "seed": lambda batch: batch["seed"],
    "skipped": skipped,
    "note": lambda batch: " ".join(batch["warnings"][:3]) + (" …" if batch["warned"] > 3 else ""),
    "stops": describe_stop_rule,
    "retry of": lambda batch: batch["parent_id"],
    "retried in": lambda batch: batch["retry_id"],
    "a minute": lambda batch: batch["images_per_minute"],
    "takes": lambda batch: format_duration(batch["eta_seconds"]),
    "finished": lambda batch: batch["finished_at"],
}


@click.group(cls=Group)
def batch() -> None:
    """Batches of your tenant: many prompts in one file."""


@batch.command()
@click.argument("prompts", metavar="FILE|ID...", nargs=-1, required=True)
@click.option("--images-per-prompt", type=int, help="Each has its own seed.  [default: 1]")
@click.option("--seed", type=int, help="Of the first picture; each next one has the next seed.  [default: random]")
@click.option("--model", help="A model of `huafang models ls`.")
@click.option("--size", type=Size(), help="Pixels, such as 512x512.")
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--guidance", type=float, help="How closely to follow the prompts.")
@click.option("--scheduler", help="Such as lms, ddim, euler.")
@click.option("--negative", "negative_prompt", help="What to keep out of the pictures.")
@click.option(
    "--matrix", "lists", type=FieldValueList(), multiple=True, help="Render each prompt with each value; see below."
)
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="The priority.  [default: bulk]")
@click.option("--name", help="A name for you.")
@click.option(
    "--stop-at", "stop_rule", type=StopRule(), help="Pause when more of its last images failed or were flagged."
)
@click.option(
    "--column", "columns", type=FieldColumn(), multiple=True, help="The column that means a field; repeat it for more."
)
@click.option(
    "--no-header", is_flag=True, help="The table has no names of columns: they are 1, 2, 3 …, the prompt is 1."
)
@click.option("--keep", type=KeptColumns(), help="Columns whose values go into datasets, too.")
@click.option("--skip-bad", is_flag=True, help="Skip invalid prompts; without it one refuses the batch.")
@click.option(
    "--input-format", type=click.Choice(list(FORMATS)), help="Of the file.  [default: by its name and first bytes]"
)
@click.option("--dry-run", is_flag=True, help="Upload the file and show what the batch would be; submit nothing.")
@click.option("--watch", "is_watched", is_flag=True, help="Watch it until it ends.")
@click.pass_obj
def submit(
    shell: Shell,
    /,
    prompts: tuple[str, ...],
    images_per_prompt: int | None,
    seed: int | None,
    tier: str | None,
    name: str | None,
    stop_rule: dict[str, Any] | None,
    size: tuple[int, int] | None,
    columns: tuple[tuple[str, str], ...],
    no_header: bool,
    keep: list[str] | str | None,
    skip_bad: bool,
    input_format: str | None,
    dry_run: bool,
    is_watched: bool,
    lists: tuple[FieldValues, ...],
    **fields: Any,
) -> None:
    """Submit the prompts of FILE: a prompt per line (.txt), JSON objects (.jsonl, .ndjson, .json), or a table with a
    column prompt or 提示词 (.csv, .tsv, .xlsx, .parquet), each also as .gz or .zst; - is stdin. What a file is its
    bytes say too. All but .txt may have other fields of a recipe. The defaults of all fields are the model's, in the
    catalogue. ID is an upload, as a --dry-run prints it.

    FILE may be a pattern (`'prompts/*.csv'`) or an address: `s3://bucket/key`, `https://host/file.jsonl`,
    `hf://datasets/owner/name/data/train.parquet`. Each of several files becomes a batch of its own.

    A column that means no field is an error, unless --keep says which values go with the pictures into datasets:
    `--keep id,category`, `--keep all`, or `--keep ""` for none. `--column prompt=caption` says which is the prompt.

    With --matrix each prompt is rendered with each of several values, from the same seeds; several --matrix multiply.
    `--matrix steps=20,50` has two values, and `--matrix model:scheduler=zh-v0:lms,zh-v1:pndm` two pairs.
    """
    if size:
        fields["width"], fields["height"] = size
    given: dict[str, Any] = {
        "images_per_prompt": images_per_prompt,
        "seed": seed,
        "tier": tier,
        "name": name,
        "stop_rule": stop_rule,
    }
    named = {"prompt": "1", **dict(columns)} if no_header else dict(columns)
    given |= {"columns": named or None, "keep": keep}
    defaults = {field: value for field, value in fields.items() if value is not None}
    draft = {"defaults": defaults, **{field: value for field, value in given.items() if value is not None}}
    if lists:
        draft["matrix"] = build_matrix(lists)
    if skip_bad:
        draft["skip_bad"] = True
    check_text({**defaults, **draft})
    sources = find_sources(prompts)
    names = [name] if len(sources) == 1 else [f"{name or ''} {name_of(source)}".strip() for source in sources]
    uploads = [upload_prompts(shell, source, input_format) for source in sources]
    drafts = [
        draft | ({"name": name[:MAX_NAME]} if name else {}) | {"upload": upload}
        for name, upload in zip(names, uploads, strict=True)
    ]
    if dry_run:
        return dry_run_batches(shell, drafts)
    made = [shell.client.submit(draft, "/v1/batches") for draft in drafts]
    if is_watched:
        return watch_all(shell, made)
    print_batches(shell, made)


@batch.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The most batches to list.")
@click.pass_obj
def ls(shell: Shell, limit: int) -> None:
    """List batches, the newest first."""
    shell.print_rows(shell.client.pages("/v1/batches", limit), ROW)


@batch.command("watch")
@click.argument("batch_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="The most seconds to wait.")
@click.pass_obj
def watch_(shell: Shell, batch_id: str, timeout: float | None) -> None:
    """Watch a batch until it ends. With --format json, or into a pipe: a line of JSON after each change."""
    if shell.output_format != "json":
        return print_ended(shell, watch_batch(shell, batch_id, timeout))
    if failure := batch_failure(watch_batch(shell, batch_id, timeout, on_change=print_line)):
        raise failure


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def pause(shell: Shell, batch_id: str) -> None:
    """Pause a batch; images that are being rendered are finished."""
    change(shell, batch_id, "pause")


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def resume(shell: Shell, batch_id: str) -> None:
    """Resume a paused batch."""
    change(shell, batch_id, "resume")


@batch.command()
@click.argument("batch_id", metavar="ID")
@click.pass_obj
def cancel(shell: Shell, batch_id: str) -> None:
    """Cancel a batch for good; stored images stay."""
    change(shell, batch_id, "cancel")


@batch.command("retry-failed")
@click.argument("batch_id", metavar="ID")
@click.option("--watch", "is_watched", is_flag=True, help="Watch it until it ends.")
@click.pass_obj
def retry_failed(shell: Shell, batch_id: str, is_watched: bool) -> None:
    """Render the failed images of an ended batch again, as a new batch with the same recipes and seeds."""
    made = shell.client.post(api_path("batches", batch_id, "retry-failed"))
    if is_watched:
        shell.print_message(f"{made['id']} retries the failed images.")
        return print_ended(shell, watch_batch(shell, made["id"]))
    shell.print_record(made, RECORD)


@batch.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@WAIT
@click.pass_obj
def rm(shell: Shell, ids: tuple[str, ...], yes: bool, wait: bool) -> None:
    """Delete batches with their jobs and pictures, for good. One that has not ended is cancelled first."""
    if not yes:
        found = [shell.client.get(api_path("batches", batch_id)) for batch_id in ids]
        for one in found:
            shell.print_message(f"{one['id']} {one['name']}: {one['jobs']} jobs, {one['images']['stored']} pictures")
    confirm("Delete them for good?" if len(ids) > 1 else "Delete it for good?", yes)
    remove(shell, "batches", ids, wait)


def change(shell: Shell, batch_id: str, verb: str) -> None:
    shell.print_record(shell.client.post(api_path("batches", batch_id, verb)), RECORD)


def print_batches(shell: Shell, batches: Sequence[Json]) -> None:
    if len(batches) == 1:
        shell.print_record(batches[0], RECORD)
    else:
        shell.print_rows(batches, ROW)


def watch_all(shell: Shell, batches: Sequence[Json]) -> None:
    """Watch batches, one after the other. Raises Failure where an image of one is not stored."""
    for batch in batches:
        shell.print_message(f"{batch['id']} is submitted.")
    ended = [watch_batch(shell, batch["id"]) for batch in batches]
    print_batches(shell, ended)
    if failure := next(filter(None, map(batch_failure, ended)), None):
        raise failure


def print_ended(shell: Shell, batch: Json) -> None:
    """Print a batch that has ended. Raises Failure where an image is not stored."""
    shell.print_record(batch, RECORD)
    if failure := batch_failure(batch):
        raise failure


def print_line(batch: Json) -> None:
    print_json(batch, indent=None)
