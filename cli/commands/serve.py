"""`huafang serve` and `huafang admin`: replace this process by `python -m api`, `worker` or `common.bootstrap`."""

import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

import click

from cli.local import local_url, run_embedded
from cli.shell import Group, Shell

PASS_ON = {"ignore_unknown_options": True}
WAIT = click.option(
    "--wait", default=30, show_default=True, type=click.IntRange(0), help="Seconds to wait for Postgres."
)


@click.group(cls=Group)
def serve() -> None:
    """Run one process of a farm, until a signal ends it. Settings are HUAFANG_* variables."""


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def api(shell: Shell, options: tuple[str, ...]) -> None:
    """Serve the HTTP API."""
    exec_module(shell, "api", *options)


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def worker(shell: Shell, options: tuple[str, ...]) -> None:
    """Render on one device (HUAFANG_DEVICE or --device); `--device cuda:all` starts a process for each GPU."""
    exec_module(shell, "worker", "render", *options)


@serve.command(context_settings=PASS_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def control(shell: Shell, options: tuple[str, ...]) -> None:
    """Sweep, expand batches and export datasets. Needs no GPU; run one or several."""
    exec_module(shell, "worker", "control", *options)


@click.group(cls=Group)
def admin() -> None:
    """Prepare a farm and keep it in order (HUAFANG_DATABASE_URL)."""


@admin.command()
@click.option(
    "--adopt",
    type=click.Choice(["bucket", "pepper"]),
    help="Then make HUAFANG_S3_BUCKET or HUAFANG_KEY_PEPPER this farm's. A new pepper voids all keys.",
)
@WAIT
@click.pass_obj
def migrate(shell: Shell, adopt: str | None, wait: int) -> None:
    """Migrate the tables to the newest revision, and write the farm's id; does nothing where they have it."""
    exec_module(shell, "common.bootstrap", "migrate", f"--wait={wait}", *([f"--adopt={adopt}"] if adopt else []))


@admin.command()
@click.option("--another", is_flag=True, help="Create one more admin key, where the first was lost.")
@WAIT
@click.pass_obj
def bootstrap(shell: Shell, another: bool, wait: int) -> None:
    """Create the tenant `default` and its first admin key, and print the key as JSON: the only time it is shown."""
    exec_module(shell, "common.bootstrap", "bootstrap", f"--wait={wait}", *(["--another"] if another else []))


@admin.command()
@click.option("--dry-run", is_flag=True, help="Only count them.")
@WAIT
@click.pass_obj
def prune(shell: Shell, dry_run: bool, wait: int) -> None:
    """Delete the rows that nothing needs any more, and print how many as JSON, by table.

    Control workers do so once a minute. What tenants own is not touched. Without HUAFANG_DATABASE_URL it is the local
    farm's database.
    """
    options = ["--dry-run"] if dry_run else []
    exec_module(shell, "common.bootstrap", "prune", f"--wait={wait}", *options, environment=local_environment(shell))


@admin.command()
@click.option("--repair", is_flag=True, help="Delete orphans, and mark images and datasets whose files are gone.")
@click.option("--digests", is_flag=True, help="Read all bytes and compare their sha256; else sizes are compared.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="At most so many objects a second.")
@click.option("--cursor", type=click.Path(dir_okay=False), help="A file that says how far it came, to go on from.")
@click.option("--young", type=click.FloatRange(min=0), help="Hours; younger orphans are left alone.  [default: 24]")
@WAIT
@click.pass_obj
def scrub(
    shell: Shell, repair: bool, digests: bool, rate: float | None, cursor: str | None, young: float | None, wait: int
) -> None:
    """Compare the rows of images, uploads and datasets with the objects in the image store, both ways.

    Prints a line of JSON for each object that is missing, damaged or orphaned, and the numbers at the end. Exit code 6
    where something is left to repair.
    """
    given = {"--rate": rate, "--cursor": cursor, "--young": young}
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    options += [name for name, is_given in {"--repair": repair, "--digests": digests}.items() if is_given]
    exec_module(shell, "common.bootstrap", "scrub", f"--wait={wait}", *options, environment=local_environment(shell))


def local_environment(shell: Shell) -> dict[str, str]:
    """The variables of the local farm, if it runs and no database is named."""
    if "database_url" in shell.settings.model_fields_set or local_url(shell.settings.home) is None:
        return {}
    farm = run_embedded("status")
    return dict(farm["environment"]) if farm else {}


def exec_module(
    shell: Shell, module: str, *arguments: str, environment: Mapping[str, str] = MappingProxyType({})
) -> NoReturn:
    """Replace this process by a module's, so that signals reach it and its exit code is this command's."""
    _ = shell.settings  # raises Failure where a setting is invalid
    sys.stdout.flush()
    # -P: never import from the current folder.
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **environment})
