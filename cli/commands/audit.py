"""`huafang audit`: who did what, newest first."""

import click

from cli.shell import Command, Shell
from cli.terminal import Columns, print_lines

ROW: Columns = {
    "at": lambda record: record["at"],
    "tenant": lambda record: record["tenant"],
    "key": lambda record: record["key"],
    "via": lambda record: record["via"],
    "address": lambda record: record["address"],
    "action": lambda record: record["action"],
    "subject": lambda record: record["subject"],
    "of": lambda record: record["acted_on"],
    "detail": lambda record: [f"{name}: {value}" for name, value in record["detail"].items()],
}


@click.command(cls=Command)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The most records to list.")
@click.option("--all-tenants", is_flag=True, help="Of all tenants: needs a key with the scope operator.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV.")
@click.pass_obj
def audit(shell: Shell, limit: int, all_tenants: bool, as_csv: bool) -> None:
    """List who did what with the keys of your tenant, the newest first. Needs a key with the scope admin."""
    whose = {"all_tenants": "true"} if all_tenants else {}
    if not as_csv:
        return shell.print_rows(shell.client.pages("/v1/audit", limit, **whose), ROW)
    for table in shell.client.csv_pages("/v1/audit", limit, **whose):
        print_lines(table)
