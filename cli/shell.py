"""What every command gets: the global options, the settings, a client, and the output formats.

Data goes to stdout in the chosen format, everything else to stderr. Knows neither commands nor HTTP.
"""

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click

from cli import sentence
from cli.errors import USAGE, Failure
from cli.terminal import Columns, Row, print_json, print_line, print_lines, print_record, print_table

if TYPE_CHECKING:
    from cli.client import Client
    from common.config import Settings

UNITS = ("bytes", "kB", "MB", "GB", "TB")


class Shell:
    """One call of the command line. Each attribute is a global option, or None where it was not given."""

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
            raise Failure(sentence("setting_invalid", errors=wrong), USAGE) from None

    @cached_property
    def client(self) -> "Client":
        from cli.client import Client
        from cli.local import find_farm

        url, key = find_farm(self.settings, self.url, self.key)
        return Client(url, key)

    # Output

    @property
    def output_format(self) -> str:
        """human, json or quiet."""
        if self.format in (None, "auto"):
            return "human" if sys.stdout.isatty() else "json"
        return str(self.format)

    def print_message(self, text: str) -> None:
        """Print progress, a warning or a hint on stderr; nothing in the quiet format."""
        if self.output_format != "quiet":
            print_line(text, err=True)

    def print_rows(self, rows: Sequence[Row], columns: Columns, name: str = "id") -> None:
        """Print a list: a table, a JSON array, or `name` of each row."""
        if self.output_format == "json":
            print_json(rows)
        elif self.output_format == "quiet":
            for row in rows:
                print_line(row[name])
        else:
            print_table(rows, columns)

    def print_record(self, record: Row, columns: Columns, name: str = "id") -> None:
        """Print one resource: lines of name and value, a JSON object, or its `name`."""
        if self.output_format == "json":
            print_json(record)
        elif self.output_format == "quiet":
            print_lines(str(record[name]))
        else:
            print_record(record, columns)


def format_bytes(count: float | None) -> str | None:
    """1280 → `1.28 kB`."""
    if count is None:
        return None
    unit = 0
    while count >= 999.5 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def format_duration(seconds: float | None) -> str | None:
    """In the largest unit of which there are more than two: `139 h`, `26 min`, `90 s`."""
    if seconds is None:
        return None
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{hours} h" if hours > 2 else f"{minutes} min" if minutes > 2 else f"{seconds:.0f} s"


def format_range(seconds: float | None, most: float | None) -> str | None:
    """What is as likely to be exceeded as not, and what nine of ten stay below: `26 min (≤ 31 min)`."""
    typical, longest = format_duration(seconds), format_duration(most)
    return f"{typical} (≤ {longest})" if typical and longest and longest != typical else typical


def format_estimate(estimate: Row) -> str | None:
    """How long something will take, or why nobody knows."""
    if estimate["seconds"] is None:
        return estimate["unknown"]["message"] if estimate["unknown"] else None
    return format_range(estimate["seconds"], estimate["seconds_p90"])


# The global options, which are options of every command too: `huafang jobs ls --format json`.


def store_option(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value and param.name:
        setattr(ctx.obj, param.name, value)


def global_options(hidden: bool = False) -> list[click.Parameter]:
    formats = click.Choice(["auto", "human", "json", "quiet"])
    shared: dict[str, Any] = {"expose_value": False, "callback": store_option, "hidden": hidden}
    return [
        click.Option(["--format"], type=formats, help="auto: human on a terminal, else json.", **shared),
        click.Option(["--url"], help="The farm's address.  [default: HUAFANG_URL, then the local farm]", **shared),
        click.Option(["--key"], help="The API key.  [default: HUAFANG_KEY, then the local farm's]", **shared),
        click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.", **shared),
    ]


class Command(click.Command):
    def __init__(self, name: str | None, params: list[click.Parameter] | None = None, **options: Any) -> None:
        super().__init__(name, params=[*(params or []), *global_options(hidden=True)], **options)


class Group(click.Group):
    """A noun; its commands are verbs."""

    command_class = Command
