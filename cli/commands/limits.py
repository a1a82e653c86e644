"""`huafang limits`: how full each limit is."""

from collections.abc import Callable

import click

from cli.shell import Command, Shell, format_bytes
from cli.terminal import Columns, Row

BAR = 20  # characters


def amount(limit: Row, name: str) -> str:
    """`12,000`, or `4.2 GB` of bytes."""
    value = limit[name]
    if value is None:
        return ""
    return format_bytes(value) or "" if limit["limit"].endswith("_bytes") else f"{value:,}"


def bar(limit: Row) -> str:
    """`#####...............`, full from the limit on; nothing for an unlimited one."""
    if limit["allowed"] is None:
        return ""
    full = BAR if limit["used"] >= limit["allowed"] else BAR * limit["used"] // limit["allowed"]
    return "#" * full + "." * (BAR - full)


def each(name: str) -> Callable[[Row], str]:
    return lambda limit: amount(limit, name)


ROW: Columns = {
    "limit": lambda limit: limit["limit"].replace("_", " "),
    "": bar,
    "used": each("used"),
    "allowed": lambda limit: amount(limit, "allowed") or "unlimited",
    "resets": lambda limit: limit["resets_at"],
    " ": lambda limit: "of each API process" if limit["counted_by"] == "process" else "",
}


@click.command(cls=Command)
@click.pass_obj
def limits(shell: Shell) -> None:
    """Show the limits of your tenant, and how full each is."""
    shell.print_rows(shell.client.get("/v1/limits")["items"], ROW)
