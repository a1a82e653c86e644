"""`huafang serve`: become one process of a farm. The process itself is `python -m api` or `python -m worker`."""

import os
import sys
from typing import NoReturn

import click

from cli.shell import Group, Shell

PASS_ON = {"ignore_unknown_options": True}


@click.group(cls=Group)
def serve() -> None:
    """Be one process of a farm, until a signal ends it. Settings come from HUAFANG_* variables."""


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def api(shell: Shell, options: tuple[str, ...]) -> None:
    """Serve the HTTP API."""
    become(shell, "api", *options)


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def worker(shell: Shell, options: tuple[str, ...]) -> None:
    """Render: one process per device (HUAFANG_DEVICE)."""
    become(shell, "worker", "render", *options)


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def control(shell: Shell, options: tuple[str, ...]) -> None:
    """Keep the farm tidy: the sweep. Needs no GPU; run one or several."""
    become(shell, "worker", "control", *options)


def become(shell: Shell, module: str, *arguments: str) -> NoReturn:
    """Run a module in place of this process, so that signals and the exit code are its own."""
    _ = shell.settings  # what is wrong with them is said here, in one sentence
    sys.stdout.flush()
    # -P: what lies in the current folder is never imported.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])
