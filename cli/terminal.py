"""All that the command line prints, on stdout or stderr: text, tables, JSON, progress. A test lets nothing else print.

Texts of users and of the farm may have characters that a terminal obeys: they are escaped here, so a line stays one
line. JSON is UTF-8, or ASCII where the locale has another encoding. Knows neither commands nor formats.
"""

import codecs
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from common.sentences import printable, printable_json

if TYPE_CHECKING:
    from rich.progress import Progress

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], Any]]


def prepare_streams() -> None:
    """Print a character that the locale's encoding lacks as its escape. For the start of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_line(text: object, *, err: bool = False, label: str = "", colour: str | None = None) -> None:
    """Print one line, on stdout or stderr. `label` stands before the text, in that colour."""
    click.echo(click.style(printable(label), colour) + printable(text) if label else printable(text), err=err)


def print_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, all of them ours."""
    for line in text.split("\n"):
        print_line(line, err=err)


def print_usage_error(error: click.ClickException) -> None:
    shown = io.StringIO()
    error.show(shown)
    print_lines(shown.getvalue().removesuffix("\n"), err=True)


def print_json(value: Any, indent: int | None = 2) -> None:
    has_all = codecs.lookup(sys.stdout.encoding or "ascii").name == "utf-8"
    document = json.dumps(value, ensure_ascii=not has_all, indent=indent)
    click.echo("\n".join(map(printable_json, document.split("\n"))))


def print_table(rows: Sequence[Row], columns: Columns) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in columns:
        table.add_column(title, overflow="fold", no_wrap=title == "id")  # an id can be copied
    for row in rows:
        table.add_row(*(Text(format_value(value(row))) for value in columns.values()))
    # A file has no width, so its lines are not folded.
    Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table)


def print_record(record: Row, columns: Columns) -> None:
    """Print a line of name and value for each column that has a value."""
    shown = {title: format_value(value(record)) for title, value in columns.items()}
    width = max(map(len, shown))
    for title, text in shown.items():
        if text:
            print_lines(f"{title:<{width}}  {text}")


def format_value(value: Any) -> str:
    """A value in a table: nothing for None, times to the second, a line for each member of a list."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(map(format_value, value))
    text = printable(value)
    return text[:19].replace("T", " ") if len(text) > 19 and text[10:11] == "T" and text[:4].isdigit() else text


def progress_bar() -> "Progress":
    """A bar on stderr, which disappears at its end. A description may be a list of lines."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Description(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(format_value(task.description))

    columns = (SpinnerColumn(), Description(), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
