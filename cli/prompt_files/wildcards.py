"""The wildcards of templates: a folder of files of text, as collections of them are published. Knows no farm."""

from pathlib import Path

from cli import sentence
from cli.errors import USAGE, Failure
from common.recipes.prompt_templates import MAX_LISTS

MAX_WILDCARD_BYTES = 1_000_000  # of one file


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
