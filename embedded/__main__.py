"""`python -m embedded up | down | status`: the local farm, for the command line. Data on stdout, progress on stderr."""

import json
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict

import click

from common.config import Settings
from common.errors import Conflict, Error
from embedded import farm
from embedded.instance import home_of


@click.group()
def main() -> None:
    """The local farm: real servers, API and workers on this machine."""


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@main.command()
@click.option("--listen", metavar="ADDRESS", help="Let other machines join by this IPv4 address (0.0.0.0: by any).")
@click.option("--device", help="What the workers render on: auto, cpu, cuda, cuda:1, mps or stub.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="How many render.")
@as_json
def up(listen: str | None, device: str | None, workers: int, as_json: bool) -> None:
    """Start the farm, or find it running."""
    tell(farm.up(Settings(), listen=listen, device=device, workers=workers, say=say), as_json)


@main.command()
@as_json
def down(as_json: bool) -> None:
    """Stop the farm; its data stay."""
    farm.down(Settings())
    tell(None, as_json)


@main.command()
@as_json
def status(as_json: bool) -> None:
    """Show what runs."""
    tell(farm.status(Settings()), as_json)


def tell(found: farm.Farm | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps(None if found is None else asdict(found), indent=2))
    elif found is None:
        print("The farm is down.")
    else:
        print(f"The farm is up at {found.url}, its data in {found.home}.")
        for process in found.processes:
            print(f"  {process.name:<12} {process.state:<9} {process.pid or '':<8} {process.uptime_s} s")
        for line in found.join:
            print(line)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run() -> None:
    try:
        main(standalone_mode=False)
    except Error as error:
        say(error.message)
        sys.exit(5 if isinstance(error, Conflict) else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        log = home_of(Settings()) / "logs" / "embedded.log"
        with suppress(OSError):
            log.write_text(traceback.format_exc())
        say(f"The local farm met something unforeseen ({type(error).__name__}); see {log}.")
        sys.exit(1)


if __name__ == "__main__":
    run()
