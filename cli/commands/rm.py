"""What `huafang jobs rm`, `batch rm` and `dataset rm` share: delete, say what is left, and wait until nothing is."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from cli import sentence
from cli.client import Json, api_path
from cli.errors import INTERRUPTED, PARTLY, USAGE, Failure, program_name
from cli.shell import Shell
from cli.terminal import Columns, print_line
from cli.watch import show_progress

POLL_S = 1.0
WAIT = click.option("--wait", is_flag=True, help="Wait until the pictures are gone from the image store, too.")
ROW: Columns = {
    "id": lambda tombstone: tombstone["id"],
    "kind": lambda tombstone: tombstone["kind"],
    "deleted": lambda tombstone: tombstone["deleted_at"],
    "pictures left": lambda tombstone: tombstone["pictures_left"],
}


def remove(shell: Shell, noun: str, ids: Sequence[str], wait: bool) -> None:
    """Delete these and print their tombstones; a failure does not stop the others. Raises Failure where one failed."""

    def delete(one: str) -> Json:
        path = api_path(noun, one)
        shell.client.delete(path)
        return shell.client.tombstone(path)

    done, failure = for_each(ids, delete)
    if wait:
        done = [follow(shell, api_path(noun, tombstone["id"]), tombstone) for tombstone in done]
    if done:
        shell.print_rows(done, ROW)
    if failure:
        raise failure


def confirm(question: str, is_sure: bool) -> None:
    """Raises Failure unless the user answers yes; `is_sure` is an option's yes."""
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise Failure(sentence("deletion_needs_yes", program=program_name()), USAGE)
    if not click.confirm(question, err=True):
        raise Failure(sentence("deletion_refused"))


def follow(shell: Shell, path: str, tombstone: Json) -> Json:
    """The tombstone when nothing is left of what was deleted. Ctrl-C ends the watch, not the deletion."""
    total = tombstone["pictures_left"]

    def describe(found: Json) -> str:
        return f"deleted: {found['pictures_left']} pictures left"

    def bar(found: Json) -> Json:
        return {"description": describe(found), "total": total, "completed": total - found["pictures_left"]}

    try:
        with show_progress(
            shell, describe, bar, line_key=lambda found: found["pictures_left"] * 10 // (total or 1)
        ) as show:
            while not tombstone["finished_at"]:
                show(tombstone)
                time.sleep(POLL_S)
                tombstone = shell.client.tombstone(path)
    except KeyboardInterrupt:
        raise Failure(sentence("deletion_goes_on"), INTERRUPTED) from None
    return tombstone


def for_each(ids: Sequence[str], act: Callable[[str], Any]) -> tuple[list[Any], Failure | None]:
    """What `act` returns for each of these ids; and the failure of all, printed one by one if there are several."""
    done: list[Any] = []
    failures: list[Failure] = []
    for one in ids:
        try:
            done.append(act(one))
        except Failure as failure:
            failures.append(failure)
            if len(ids) > 1:
                print_line(f"huafang: {one}: {failure.message}", err=True)
    if failures and len(ids) > 1:
        message = sentence("some_failed", failed=len(failures), total=len(ids))
        return done, Failure(message, PARTLY if done else failures[0].exit_code)
    return done, failures[0] if failures else None
