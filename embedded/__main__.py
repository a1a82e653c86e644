"""`python -m embedded up | down | status`: the local farm. Data goes to stdout, progress and errors to stderr."""

import json
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict

import click

from common.config import Settings
from common.errors import Conflict, Error
from common.sentences import printable
from embedded import farm, sentence
from embedded.instance import home_path


@click.group()
def main() -> None:
    """The local farm: servers, API and workers on this machine."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@main.command()
@click.option(
    "--listen", metavar="ADDRESS", help="The IPv4 address that other machines use to join (0.0.0.0: any address)."
)
@click.option("--device", help="The workers' device: auto, cpu, cuda, cuda:1, mps or stub.")
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="The number of render workers."
)
@as_json
def up(listen: str | None, device: str | None, workers: int, as_json: bool) -> None:
    """Start the farm. Does nothing where it runs."""
    print_farm(farm.up(Settings(), listen=listen, device=device, workers=workers, on_progress=print_progress), as_json)


@main.command()
@as_json
def down(as_json: bool) -> None:
    """Stop the farm and keep its data."""
    farm.down(Settings())
    print_farm(None, as_json)


@main.command()
@as_json
def status(as_json: bool) -> None:
    """Show the processes of the farm."""
    print_farm(farm.status(Settings()), as_json)


def print_farm(found: farm.Farm | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(None if found is None else asdict(found), indent=2))
    elif found is None:
        print("The farm is down.")
    else:
        print(f"The farm is up at {found.url}, its data in {found.home}.")
        for process in found.processes:
            print(f"  {process.name:<12} {process.state:<9} {process.pid or '':<8} {process.uptime_s} s")
        for line in [*found.alerts, *found.join]:
            print(line)


def print_progress(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


def run() -> None:
    try:
        main(standalone_mode=False)
    except Error as error:
        print_progress(error.message)
        sys.exit(5 if isinstance(error, Conflict) else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        log = home_path(Settings()) / "logs" / "embedded.log"
        with suppress(OSError):
            log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        print_progress(sentence("unexpected", error=type(error).__name__, log=log))
        sys.exit(1)


if __name__ == "__main__":
    run()
