"""Uploading a file of prompts, the wildcards of its templates, and the dry run of a batch of it. Knows no command."""

import re
import shutil
import sys
import tempfile
from contextlib import ExitStack
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

from cli import sentence
from cli.client import Json
from cli.errors import USAGE, Failure
from cli.shell import Shell, format_bytes, format_duration
from cli.terminal import Columns, Row, print_line, progress_bar
from common.prompt_files.columns import FIELDS, field_of
from common.recipes.prompt_templates import MAX_LISTS
from common.sentences import printable

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".jsonl": "application/jsonl",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
}
SHOWN_SEEDS = 5
MAX_WILDCARD_BYTES = 1_000_000  # of one file
HEAD_BYTES = 64_000  # of stdin, to recognise its format by


def upload_prompts(shell: Shell, prompts: BinaryIO | str) -> str:
    """The id of the upload; a string is one already. A pipe is copied to a file first: an upload may be sent again."""
    if isinstance(prompts, str):
        return prompts
    is_stdin = prompts is sys.stdin.buffer
    suffix = "" if is_stdin else Path(prompts.name).suffix.lower()
    if not is_stdin and suffix not in MEDIA_TYPES:
        raise Failure(sentence("prompt_file_unknown", file=prompts.name), USAGE)
    with ExitStack() as stack:
        if not prompts.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(prompts, copy)
            prompts = copy
        if is_stdin:
            prompts.seek(0)
            suffix = recognise(prompts.read(HEAD_BYTES))
        if shell.output_format == "quiet" or not sys.stderr.isatty():
            return str(shell.client.upload(prompts, MEDIA_TYPES[suffix], lambda sent: None)["id"])
        progress = stack.enter_context(progress_bar())
        task = progress.add_task("uploading", total=prompts.seek(0, SEEK_END))
        made = shell.client.upload(prompts, MEDIA_TYPES[suffix], lambda sent: progress.update(task, completed=sent))
        return str(made["id"])


def recognise(head: bytes) -> str:
    """The suffix of a file that begins so: .txt where it is neither JSON Lines, nor Parquet, nor a table."""
    if head.startswith(b"PAR1"):
        return ".parquet"
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb'\{\s*["}]', first):
        return ".jsonl"
    line = re.split(rb"[\r\n]", first, maxsplit=1)[0]
    for encoding in ("utf-8", "gb18030"):
        names = [field_of(name.strip(' "')) for name in re.split("[,;\t]", line.decode(encoding, "replace"))]
        if "prompt" in names and sum(name in FIELDS for name in names) > 1:
            return ".csv"
    return ".txt"


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


DRY_RUN: Columns = {
    "prompts": lambda found: estimate(found, "prompts"),
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


def read_wildcards(folder: Path) -> dict[str, list[str]]:
    """The values of each wildcard: `colours/bright.txt` has those of `__colours/bright__`, one a line.

    Blank lines are left out, and lines that begin with #, which are comments in published collections. Raises Failure
    for a folder that cannot be sent.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.txt")):
        if len(found) == MAX_LISTS:
            raise Failure(sentence("too_many_wildcards", folder=folder, most=MAX_LISTS), USAGE)
        found[file.relative_to(folder).with_suffix("").as_posix()] = read_values(file)
    if not found:
        raise Failure(sentence("no_wildcards", folder=folder), USAGE)
    return found


def read_values(file: Path) -> list[str]:
    try:
        if file.stat().st_size > MAX_WILDCARD_BYTES:
            raise Failure(sentence("wildcard_too_large", file=file, most=MAX_WILDCARD_BYTES), USAGE)
        lines = file.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise Failure(sentence("not_readable", path=file, reason=error.strerror)) from None
    except UnicodeDecodeError:
        raise Failure(sentence("not_utf8", field=file), USAGE) from None
    values = [line.strip() for line in lines]
    return [value for value in values if value and not value.startswith("#")]
