"""`huafang up | down | status | test`: the local farm. `python -m embedded` runs it; this creates its admin key."""

import os
from typing import Any

import click

from cli import sentence
from cli.errors import AUTH, NOT_FOUND, ROOT, USAGE, Failure, program_name
from cli.local import create_key, read_key, run_embedded
from cli.shell import Command, Shell
from cli.terminal import print_line, print_lines
from common.config import Settings

HIDDEN = ("environment",)  # the farm's secrets


@click.command(cls=Command)
@click.option("--listen", metavar="ADDRESS", help="The address that other machines use to join (0.0.0.0: any address).")
@click.option("--device", help="The workers' device: auto, cpu, cuda, cuda:1, cuda:all, mps or stub.")
@click.option("--workers", type=click.IntRange(1, 64), help="The number of render workers.  [default: 1]")
@click.pass_obj
def up(shell: Shell, listen: str | None, device: str | None, workers: int | None) -> None:
    """Start the local farm; does nothing where it runs.

    Its data, logs and secrets are in ~/.local/share/huafang (or HUAFANG_HOME).
    """
    show(shell, start(shell.settings, listen, device, workers))


@click.command(cls=Command)
@click.pass_obj
def down(shell: Shell) -> None:
    """Stop the local farm and keep its data."""
    run_embedded("down")
    shell.print_message("The farm is down; its data stays.")


@click.command(cls=Command)
@click.pass_obj
def status(shell: Shell) -> None:
    """Show the processes of the local farm, and which of its disks are full. Exit code 4 where it is down."""
    farm = run_embedded("status")
    if farm is None:
        raise Failure(sentence("local_farm_down", program=program_name()), NOT_FOUND)
    show(shell, farm)


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def test(options: tuple[str, ...]) -> None:
    """Install what is missing and run the test suite; --all includes the long tests. Other options go to pytest."""
    if not (ROOT / "tests" / "run.py").is_file():
        raise Failure(sentence("tests_missing"), USAGE)
    os.execv(ROOT / "huafang", [str(ROOT / "huafang"), "test", *options])


def start(settings: Settings, listen: str | None, device: str | None, workers: int | None) -> dict[str, Any]:
    """Start the local farm where it is down, and its admin key where it is missing; the farm as `up` prints it."""
    given = {"--listen": listen, "--device": device, "--workers": workers}
    farm: dict[str, Any] = run_embedded(
        "up", *(f"{name}={value}" for name, value in given.items() if value is not None)
    )
    if not is_accepted(farm["url"], read_key(settings.home)):
        create_key(settings, farm["environment"])
    return farm


def is_accepted(url: str, key: str | None) -> bool:
    from cli.client import Client

    if key is None:
        return False
    try:
        Client(url, key).get("/v1/models")
    except Failure as failure:
        if failure.exit_code == AUTH:
            return False
        raise
    return True


def show(shell: Shell, farm: dict[str, Any]) -> None:
    shown = {name: value for name, value in farm.items() if name not in HIDDEN}
    if shell.output_format != "human":
        shell.print_record(shown, {}, name="url")
        return
    print_line(f"The farm is up at {farm['url']}, its data and logs are in {farm['home']}.")
    shell.print_rows(
        farm["processes"],
        {
            "process": lambda p: p["name"],
            "state": lambda p: p["state"],
            "pid": lambda p: p["pid"],
            "up for": lambda p: f"{p['uptime_s']} s",
        },
    )
    for alert in farm["alerts"]:
        print_line(alert)
    if farm["join"]:
        print_lines("To join from another machine, run these lines in a clone of this project there:\n")
        for line in [*farm["join"], "./huafang serve worker"]:
            print_line(f"  {line}")
        print_lines("\nThey hold the farm's passwords: whoever has them can read and change everything in the farm.")
    else:
        print_line(f"Try it: {program_name()} generate 红色的圆形")
