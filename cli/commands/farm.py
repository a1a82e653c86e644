"""`huafang up | down | status | test`: the local farm. Done by `python -m embedded`; this sees to the key."""

import os
from typing import Any

import click

from cli.local import ROOT, called, embedded, make_key, read_key
from cli.shell import Command, Failure, Shell
from common.config import Settings

HIDDEN = ("environment",)  # the farm's secrets


@click.command(cls=Command)
@click.option("--listen", metavar="ADDRESS", help="Let other machines join by this address (0.0.0.0: by any).")
@click.option("--device", help="What the workers render on: auto, cpu, cuda, cuda:1, mps or stub.")
@click.option("--workers", type=click.IntRange(1, 64), help="How many render.  [default: 1]")
@click.pass_obj
def up(shell: Shell, listen: str | None, device: str | None, workers: int | None) -> None:
    """Start the local farm, or find it running.

    Its data, logs and secrets are kept in ~/.local/share/huafang (or HUAFANG_HOME).
    """
    show(shell, start(shell.settings, listen, device, workers))


@click.command(cls=Command)
@click.pass_obj
def down(shell: Shell) -> None:
    """Stop the local farm; its data stays."""
    embedded("down")
    shell.note("The farm is down; its data stays.")


@click.command(cls=Command)
@click.pass_obj
def status(shell: Shell) -> None:
    """Show what of the local farm is running. Exit code 4 where nothing is."""
    farm = embedded("status")
    if farm is None:
        raise Failure(f"The farm is down; start it with `{called()} up`.", 4)
    show(shell, farm)


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def test(options: tuple[str, ...]) -> None:
    """Set everything up and run the test suite; --all: the long forms too. Other options go to pytest."""
    if not (ROOT / "tests" / "run.py").is_file():
        raise Failure("The tests are not part of an installation: run ./huafang test in a clone.", 2)
    os.execv(ROOT / "huafang", [str(ROOT / "huafang"), "test", *options])


def start(settings: Settings, listen: str | None, device: str | None, workers: int | None) -> dict[str, Any]:
    """The local farm, running, with an admin key of ours that it knows."""
    given = {"--listen": listen, "--device": device, "--workers": workers}
    farm: dict[str, Any] = embedded("up", *(f"{name}={value}" for name, value in given.items() if value is not None))
    if not is_key(farm["url"], read_key(settings.home)):
        make_key(settings, farm["environment"])
    return farm


def is_key(url: str, key: str | None) -> bool:
    from cli.client import Client

    if key is None:
        return False
    try:
        Client(url, key).get("/v1/models")
    except Failure as failure:
        if failure.exit_code == 3:
            return False
        raise
    return True


def show(shell: Shell, farm: dict[str, Any]) -> None:
    shown = {name: value for name, value in farm.items() if name not in HIDDEN}
    if shell.speaks != "human":
        shell.print_record(shown, {}, name="url")
        return
    click.echo(f"The farm is up at {farm['url']}, its data and logs are in {farm['home']}.")
    shell.print_rows(
        farm["processes"],
        {
            "process": lambda p: p["name"],
            "state": lambda p: p["state"],
            "pid": lambda p: p["pid"],
            "up for": lambda p: f"{p['uptime_s']} s",
        },
    )
    if farm["join"]:
        click.echo("Another machine joins with a clone of this project and, in its shell:\n")
        click.echo("\n".join(f"  {line}" for line in [*farm["join"], "./huafang serve worker"]))
        click.echo("\nThese lines hold the farm's passwords: whoever has them can read and change everything in it.")
    else:
        click.echo(f"Try it: {called()} generate 红色的圆形")
