"""What every command gets: the global options, the settings, a client, and the ways to say something.

Data goes to stdout in the format that was asked for, everything else to stderr. Knows neither commands nor HTTP.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from cli.client import Client
    from common.config import Settings

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], Any]]
CODES = {400: 2, 401: 3, 403: 3, 404: 4, 408: 7, 409: 5, 413: 2, 415: 2, 422: 2, 504: 7}
PARTLY, TIMED_OUT, INTERRUPTED = 6, 7, 130


class Failure(Exception):
    """What ends a command: a sentence for stderr, and the exit code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code

    @staticmethod
    def code_of(status: int) -> int:
        """The exit code for an HTTP status."""
        return CODES.get(status, 1)


class Shell:
    """One call of the command line. What was given stands in the attributes, None where nothing was."""

    format: str | None = None
    url: str | None = None
    key: str | None = None
    debug: bool | None = None

    @cached_property
    def settings(self) -> "Settings":
        from pydantic import ValidationError

        from common.config import Settings

        try:
            return Settings()
        except ValidationError as error:
            wrong = "; ".join(f"HUAFANG_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
            raise Failure(f"A setting is wrong: {wrong}.", 2) from None

    @cached_property
    def client(self) -> "Client":
        from cli.client import Client
        from cli.local import find_farm

        url, key = find_farm(self.settings, self.url, self.key)
        return Client(url, key)

    # What is said

    @property
    def speaks(self) -> str:
        """human, json or quiet."""
        if self.format in (None, "auto"):
            return "human" if sys.stdout.isatty() else "json"
        return str(self.format)

    def note(self, text: str) -> None:
        """Progress, a warning, a hint: on stderr, and not at all in the quiet format."""
        if self.speaks != "quiet":
            click.echo(text, err=True)

    def print_rows(self, rows: Sequence[Row], columns: Columns, name: str = "id") -> None:
        """A list: a table, a JSON array, or `name` of each row."""
        if self.speaks == "json":
            print_json(rows)
        elif self.speaks == "quiet":
            for row in rows:
                click.echo(row[name])
        else:
            print_table(rows, columns)

    def print_record(self, record: Row, columns: Columns, name: str = "id") -> None:
        """One thing: lines of name and value, a JSON object, or its `name`."""
        if self.speaks == "json":
            print_json(record)
        elif self.speaks == "quiet":
            click.echo(record[name])
        else:
            shown = {title: shorten(value(record)) for title, value in columns.items()}
            width = max(map(len, shown))
            for title, text in shown.items():
                if text:
                    click.echo(f"{title:<{width}}  {text}")


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(rows: Sequence[Row], columns: Columns) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=title == "id")  # an id is there to be copied
    for row in rows:
        table.add_row(*(Text(shorten(value(row))) for value in columns.values()))
    # A file has no width: there, nothing is folded.
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def shorten(value: Any) -> str:
    """A value as a person reads it: no None, times to the second."""
    if value is None:
        return ""
    text = str(value)
    return text[:19].replace("T", " ") if len(text) > 19 and text[10:11] == "T" and text[:4].isdigit() else text


# The global options, which every command takes too: `huafang jobs ls --format json`.


def remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and param.name:
        setattr(ctx.obj, param.name, value)


def global_options(hidden: bool = False) -> list[click.Parameter]:
    formats = click.Choice(["auto", "human", "json", "quiet"])
    shared: dict[str, Any] = {"expose_value": False, "callback": remember, "hidden": hidden}
    return [
        click.Option(["--format"], type=formats, help="auto: human on a terminal, else json.", **shared),
        click.Option(["--url"], help="The farm's address; else HUAFANG_URL, else the local farm.", **shared),
        click.Option(["--key"], help="The API key; else HUAFANG_KEY, else the local farm's.", **shared),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.", **shared),
    ]


class Command(click.Command):
    def __init__(self, name: str | None, params: list[click.Parameter] | None = None, **options: Any) -> None:
        super().__init__(name, params=[*(params or []), *global_options(hidden=True)], **options)


class Group(click.Group):
    """A noun whose verbs are commands."""

    command_class = Command
