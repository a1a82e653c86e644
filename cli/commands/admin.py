"""`huafang admin`: what needs the database itself. Done by `python -m common.bootstrap`, which this only starts."""

import click

from cli.commands.serve import become
from cli.shell import Group, Shell

WAIT = click.option(
    "--wait", default=30, show_default=True, type=click.IntRange(0), help="Seconds to wait for Postgres."
)


@click.group(cls=Group)
def admin() -> None:
    """Prepare a farm's database (HUAFANG_DATABASE_URL)."""


@admin.command()
@WAIT
@click.pass_obj
def migrate(shell: Shell, wait: int) -> None:
    """Bring the tables to the newest revision; does nothing where they are."""
    become(shell, "common.bootstrap", "migrate", f"--wait={wait}")


@admin.command()
@click.option("--another", is_flag=True, help="Make one more admin key, where the first was lost.")
@WAIT
@click.pass_obj
def bootstrap(shell: Shell, another: bool, wait: int) -> None:
    """Make the tenant `default` and its first admin key, and print it as JSON: the only time it is shown."""
    become(shell, "common.bootstrap", "bootstrap", f"--wait={wait}", *(["--another"] if another else []))
