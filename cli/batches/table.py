"""How batches are shown: as rows, as records, and when they end. Knows no command."""

from collections.abc import Sequence

from cli import sentence
from cli.client import Json
from cli.shell import Shell, format_range
from cli.terminal import Columns, Row, print_json
from cli.watch import batch_failure, count_images, watch_batch


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


def describe_template(batch: Row) -> str | None:
    """An older farm has no templates."""
    if not (template := batch.get("template")):
        return None
    how = "all combinations" if template["samples"] is None else f"{template['samples']:,} samples of each"
    return ", ".join([how, *(f"__{name}__" for name in template["wildcards"][:10])])


def skipped(batch: Row) -> str | None:
    if not batch["skipped"]:
        return None
    lines = [f"line {one['line']}: {one['reason']}" for one in batch["skips"][:3]]
    return f"{batch['skipped']} ({' '.join(lines)}{' …' if batch['skipped'] > 3 else ''})"


def takes(batch: Row) -> str | None:
    """How long it will still take, or why nobody knows."""
    unknown = batch.get("eta_unknown")
    return unknown["message"] if unknown else format_range(batch["eta_seconds"], batch.get("eta_seconds_p90"))


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
    "template": describe_template,
    "skipped": skipped,
    "note": lambda batch: " ".join(batch["warnings"][:3]) + (" …" if batch["warned"] > 3 else ""),
    "stops": describe_stop_rule,
    "retry of": lambda batch: batch["parent_id"],
    "retried in": lambda batch: batch["retry_id"],
    "a minute": lambda batch: batch["images_per_minute"],
    "takes": takes,
    "finished": lambda batch: batch["finished_at"],
}


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
