"""Uploading a file of prompts, and the dry run that shows what a batch of it would be. Knows no command."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from io import SEEK_END

from cli import sentence
from cli.client import Json
from cli.errors import Failure
from cli.prompt_files.sources import is_upload, name_of, open_source
from cli.shell import Shell, format_bytes, format_duration
from cli.terminal import Columns, Row, print_line, progress_bar
from common.prompt_files.formats import ENCODINGS, FORMATS, UNKNOWN_TYPES, UTF8, format_of
from common.sentences import printable

SHOWN_SEEDS = 5


def upload_prompts(shell: Shell, source: str, format: str | None = None) -> str:
    """The id of the upload of a source; an id is one already. `format`: of it, whatever its name and its bytes say."""
    if is_upload(source):
        return source
    with ExitStack() as stack:
        if "://" in source:
            shell.print_message(sentence("source_fetched", source=source))
        file = stack.enter_context(open_source(source))
        named = format or format_of(name_of(source))
        media_type = FORMATS[named].media_types[0] if named else UNKNOWN_TYPES[0]
        if shell.output_format == "quiet" or not sys.stderr.isatty():
            return str(shell.client.upload(file, media_type, lambda sent: None, format)["id"])
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("uploading", total=file.seek(0, SEEK_END))
        made = shell.client.upload(file, media_type, lambda sent: progress.update(task, completed=sent), format)
        return str(made["id"])


def estimate(found: Row, name: str) -> str:
    return f"{'about ' if found['is_estimate'] else ''}{found[name]:,}"


def checked(found: Row) -> str | None:
    return f"the first {found['checked_prompts']:,}" if found["is_estimate"] else "all"


def describe_recipe(one: Row) -> str:
    seeds = " ".join(map(str, one["seeds"][:SHOWN_SEEDS])) + (" …" if len(one["seeds"]) > SHOWN_SEEDS else "")
    how = f"{one['width']}×{one['height']}, {one['steps']} of {one['scheduler']}, guidance {one['guidance']:g}"
    return f"{' '.join(one['prompt'].split())} — {one['model']}, {how}, seeds {seeds}"


def describe_columns(found: Row) -> str | None:
    """What each column was taken for; None where nothing but fields of these names are there. An older farm says
    nothing.
    """
    uses = found.get("columns", [])
    if all(one["field"] == one["column"] and not one["kept"] for one in uses):
        return None
    return ", ".join(map(describe_column, uses))


def describe_column(use: Row) -> str:
    name = printable(use["column"]) or '""'
    if use["field"] and use["kept"]:
        return sentence("column_read_and_kept", column=name, field=use["field"])
    if use["field"]:
        return sentence("column_read", column=name, field=use["field"])
    if use["kept"]:
        return sentence("column_kept", column=name)
    return sentence("column_left_out", column=name, reason=use["note"])


def read_as(found: Row) -> str | None:
    """The format and, where it is not the usual one, the encoding. An older farm says neither."""
    encoding = found.get("encoding")
    named = ENCODINGS.get(encoding, encoding) if encoding not in (None, UTF8) else None
    return ", ".join(filter(None, (found.get("format"), named))) or None


def count_prompts(found: Row) -> str:
    doubles = found.get("distinct", found["checked_prompts"]) < found["checked_prompts"] - found["bad"]
    return estimate(found, "prompts") + (
        f", {found['distinct']:,} distinct of {found['checked_prompts']:,}" if doubles else ""
    )


DRY_RUN: Columns = {
    "read as": read_as,
    "prompts": count_prompts,
    "checked": checked,
    "columns": describe_columns,
    "wrong": lambda found: found["bad"] or None,
    "jobs": lambda found: estimate(found, "jobs"),
    "pictures": lambda found: estimate(found, "images"),
    "takes": lambda found: format_duration(found["estimate"]["seconds"]),
    "of all GPUs": lambda found: format_duration(found["estimate"]["gpu_seconds"]),
    "size": lambda found: format_bytes(found["estimate"]["bytes"]),
    "note": lambda found: " ".join(found["warnings"][:3]) + (" …" if found["warned"] > 3 else ""),
    "upload": lambda found: found["upload"],
}


def dry_run_batches(shell: Shell, drafts: Sequence[Json]) -> None:
    """Show what batches would be. Raises the first Failure of one that would be refused, once all are shown."""
    failures = list[Failure]()
    for draft in drafts:
        try:
            dry_run_batch(shell, draft)
        except Failure as failure:
            failures.append(failure)
            if len(drafts) > 1:
                shell.print_message(f"{draft['name']}: {failure.message}")
    if failures:
        raise failures[0]


def dry_run_batch(shell: Shell, draft: Json) -> None:
    """Show what a batch would be. Raises Failure where it would be refused."""
    found = shell.client.dry_run(draft, "/v1/batches")
    shell.print_record({**found, "upload": draft["upload"]}, DRY_RUN, name="upload")
    if shell.output_format == "human":
        for one in found["recipes"]:
            print_line(describe_recipe(one))
    for one in found["bad_lines"]:
        shell.print_message(sentence("bad_line", line=one["line"], reason=one["reason"]))
    if found["bad"] and not draft.get("skip_bad"):
        raise Failure(sentence("prompts_invalid", count=found["bad"]))
    if not found["jobs"]:
        raise Failure(sentence("no_valid_prompt"))
