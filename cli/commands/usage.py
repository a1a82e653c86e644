"""`huafang usage`: what was stored, by day, key, model or tier, and what it cost."""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from cli import sentence
from cli.errors import USAGE, Failure
from cli.options import ValueList
from cli.shell import Command, Shell, format_bytes, format_duration
from cli.terminal import Columns, Row, print_json

DIMENSIONS = ("day", "tenant", "key", "model", "tier")
SUMS: Columns = {
    "pictures": lambda sums: f"{sums['images']:,}",
    "GPU time": lambda sums: format_duration(sums["gpu_seconds"]),
    "megapixels": lambda sums: f"{sums['megapixels']:,.{1 if sums['megapixels'] >= 1 else 3}f}",
    "stored": lambda sums: format_bytes(sums["bytes"]),
}


class Days(click.ParamType):
    """`30d` → 30"""

    name = "DAYS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not (found := re.fullmatch(r"(\d{1,3})d?", str(value))) or not int(found[1]):
            self.fail(sentence("days_invalid", value=value), param, ctx)
        return int(found[1])


@click.command(cls=Command)
@click.option("--by", type=ValueList(str), default="day", show_default=True, help=f"Of {', '.join(DIMENSIONS)}.")
@click.option("--last", type=Days(), help="So many days up to today, as 30d.  [default: 30d]")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), help="The first day, in UTC.")
@click.option("--to", "end", type=click.DateTime(["%Y-%m-%d"]), help="The last day, in UTC.  [default: today]")
@click.option("--all-tenants", is_flag=True, help="Of all tenants: needs a key with the scope operator.")
@click.pass_obj
def usage(
    shell: Shell, by: list[str], last: int | None, first: datetime | None, end: datetime | None, all_tenants: bool
) -> None:
    """Show what was stored for your tenant, and what it cost.

    \b
    huafang usage --by model --last 30d
    huafang usage --by day,key --from 2026-11-01 --to 2026-11-30 --format json
    """
    if last and (first or end):
        raise Failure(sentence("last_or_days"), USAGE)
    if last:
        first = datetime.now(UTC) - timedelta(days=last - 1)
    asked = {"by": ",".join(by), "from": day(first), "to": day(end), "all_tenants": all_tenants or None}
    report = shell.client.get("/v1/usage", **{name: value for name, value in asked.items() if value})
    if shell.output_format == "json":
        return print_json(report)
    grouped = report["by"]
    rows, columns = report["items"], {**{name: label(name) for name in grouped}, **SUMS, **costs(report["currency"])}
    if shell.output_format == "human":
        rows = [*rows, dict.fromkeys(grouped, "") | {grouped[0]: "total"} | report["total"]]
    shell.print_rows(rows, columns, name=grouped[0])


def day(moment: datetime | None) -> date | None:
    return moment.date() if moment else None


def label(name: str) -> Callable[[Row], Any]:
    """The name; else the id, as of a tenant that is gone. Who submitted long ago is not known."""
    return lambda item: next((one for one in (item[name], item.get(f"{name}_id")) if one is not None), "–")


def costs(currency: str | None) -> Columns:
    """None where the catalogue has no prices."""

    def cost(sums: Row) -> str | None:
        return None if sums["cost"] is None else f"{sums['cost']:,.2f} {currency}"

    return {"cost": cost} if currency else {}
