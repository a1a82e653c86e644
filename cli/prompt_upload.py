"""Files of prompts on their way to the farm, and what it says of them before they are submitted."""

import shutil
import sys
import tempfile
import uuid
from contextlib import ExitStack
from io import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

import click

from cli.batch_watch import duration
from cli.client import Json
from cli.shell import Columns, Failure, Row, Shell
from cli.watch import bar

MEDIA_TYPES = {
    ".txt": "text/plain",
    ".jsonl": "application/jsonl",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
}
SHOWN = 5


class Prompts(click.ParamType):
    """A file of this machine, - for what comes on stdin, or the id of what was uploaded already."""

    name = "FILE|ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BinaryIO | str:
        try:
            return str(uuid.UUID(str(value)))
        except ValueError:
            return click.File("rb").convert(value, param, ctx)  # type: ignore[return-value]


def upload_of(shell: Shell, prompts: BinaryIO | str) -> str:
    """The id of the upload that it is by now. What comes from a pipe is kept until it is whole: it may go again."""
    if isinstance(prompts, str):
        return prompts
    suffix = ".txt" if prompts is sys.stdin.buffer else Path(prompts.name).suffix.lower()
    if suffix not in MEDIA_TYPES:
        raise Failure(
            f"{prompts.name} must end in .txt (a prompt a line), .jsonl (a JSON object a line), .csv or .parquet.", 2
        )
    with ExitStack() as stack:
        if not prompts.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(prompts, copy)
            prompts = copy
        if shell.speaks == "quiet" or not sys.stderr.isatty():
            return str(shell.client.upload(prompts, MEDIA_TYPES[suffix], lambda sent: None)["id"])
        progress = stack.enter_context(bar())
        task = progress.add_task("uploading", total=prompts.seek(0, SEEK_END))
        sent = shell.client.upload(prompts, MEDIA_TYPES[suffix], lambda sent: progress.update(task, completed=sent))
        return str(sent["id"])


def about(found: Row, name: str) -> str:
    """A number of a dry run, with a mark where it is worked out."""
    return f"{'about ' if found['is_estimate'] else ''}{found[name]:,}"


def checked(found: Row) -> str | None:
    return f"the first {found['checked_prompts']:,}" if found["is_estimate"] else "all"


def size(found: Row) -> str | None:
    count = found["estimate"]["bytes"]
    if count is None:
        return None
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, "TB"
    return f"{count:.3g} {unit}"


def recipe(one: Row) -> str:
    seeds = " ".join(map(str, one["seeds"][:SHOWN])) + (" …" if len(one["seeds"]) > SHOWN else "")
    how = f"{one['width']}×{one['height']}, {one['steps']} of {one['scheduler']}, guidance {one['guidance']:g}"
    return f"{' '.join(one['prompt'].split())} — {one['model']}, {how}, seeds {seeds}"


TRIED_OUT: Columns = {
    "prompts": lambda found: about(found, "prompts"),
    "checked": checked,
    "wrong": lambda found: found["bad"] or None,
    "jobs": lambda found: about(found, "jobs"),
    "pictures": lambda found: about(found, "images"),
    "takes": lambda found: duration(found["estimate"]["seconds"]),
    "of all GPUs": lambda found: duration(found["estimate"]["gpu_seconds"]),
    "size": size,
    "note": lambda found: " ".join(found["warnings"][:3]) + (" …" if found["warned"] > 3 else ""),
    "upload": lambda found: found["upload"],
}


def try_out(shell: Shell, draft: Json) -> None:
    """Show what a batch would become. Raises Failure when it would be refused."""
    found = shell.client.dry_run(draft, "/v1/batches")
    shell.print_record({**found, "upload": draft["upload"]}, TRIED_OUT, name="upload")
    if shell.speaks == "human":
        for one in found["recipes"]:
            click.echo(recipe(one))
    for one in found["bad_lines"]:
        shell.note(f"Line {one['line']}: {one['reason']}")
    if found["bad"] and not draft.get("skip_bad"):
        raise Failure(f"{found['bad']:,} prompts cannot be rendered; --skip-bad leaves them out.")
    if not found["jobs"]:
        raise Failure("None of the prompts that were looked at can be rendered.")
