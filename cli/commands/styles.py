"""`huafang styles`: the styles of the catalogue, which a recipe names."""

import click

from cli.shell import Group, Shell
from cli.terminal import Columns

ROW: Columns = {
    "style": lambda style: style["name"],
    "before the prompt": lambda style: style["prefix"],
    "behind it": lambda style: style["suffix"],
    "negative": lambda style: style["negative"],
    "description": lambda style: style["description"],
}


@click.group(cls=Group)
def styles() -> None:
    """The styles of the catalogue: texts that a recipe adds to its prompts."""


@styles.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List the farm's styles."""
    shell.print_rows(shell.client.get("/v1/styles")["items"], ROW, name="name")
