"""The entry point: the table of all commands, and how errors become a sentence and an exit code.

A command's module is imported when the command is called, so that `huafang --help` loads little more than Click. Local
commands start `python -m api | worker | embedded | common.bootstrap`; all others use HTTP (`cli.client`).
"""

import os
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from cli import sentence
from cli.errors import ERROR, INTERRUPTED, Failure, exit_code_of
from cli.shell import Shell, global_options
from cli.terminal import prepare_streams, print_line, print_usage_error
from common.disks import NO_ROOM
from common.errors import Error

# name: the module of the command, and its line in the help.
COMMANDS = {
    "demo": ("cli.commands.demo", "Start a local farm, render a few Chinese prompts, show where the pictures are."),
    "test": ("cli.commands.farm", "Install what is missing and run the test suite (./huafang test, in a clone)."),
    "up": ("cli.commands.farm", "Start the local farm; does nothing where it runs."),
    "down": ("cli.commands.farm", "Stop the local farm and keep its data."),
    "status": ("cli.commands.farm", "Show the processes of the local farm."),
    "generate": ("cli.commands.generate", "Render a prompt and download the pictures."),
    "jobs": ("cli.commands.jobs", "List, show, watch, cancel and retry jobs."),
    "batch": ("cli.commands.batch", "Submit, list, watch, pause, resume, cancel and retry batches."),
    "grid": ("cli.commands.grid", "Compare models, styles, schedulers, steps or guidance side by side."),
    "dataset": ("cli.commands.dataset", "Export batches as datasets, list and verify them."),
    "models": ("cli.commands.models", "List, show, accept, import and verify models."),
    "styles": ("cli.commands.styles", "List the styles of the catalogue."),
    "workers": ("cli.commands.workers", "List, drain and resume render workers."),
    "limits": ("cli.commands.limits", "Show the limits of your tenant, and how full each is."),
    "label": ("cli.commands.label", "Read the AI labels of picture files."),
    "policy": ("cli.commands.policy", "Try the rules that refuse prompts."),
    "keys": ("cli.commands.keys", "Create, list and revoke API keys."),
    "tenants": ("cli.commands.tenants", "Create, list, change, suspend and resume tenants."),
    "audit": ("cli.commands.audit", "List who did what."),
    "usage": ("cli.commands.usage", "Show what was stored, by day, key, model or tier, and what it cost."),
    "admin": ("cli.commands.serve", "Prepare a farm and keep it in order: migrate, bootstrap, prune, scrub."),
    "doctor": ("cli.commands.doctor", "Check this machine and the farm; say how to fix what is wrong."),
    "serve": ("cli.commands.serve", "Run one process of a farm: api, worker or control."),
}


class RootGroup(click.Group):
    """The root group: imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        matches = [
            CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return matches or super().shell_complete(ctx, incomplete)


@click.command(cls=RootGroup, params=global_options(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="huafang", message="%(prog)s %(version)s")
def huafang() -> None:
    """Huafang (画坊): a render farm for Chinese text-to-image diffusion.

    Data goes to stdout, progress to stderr. Without --url the farm is the local one (huafang up). Exit codes: 0 ok,
    1 error, 2 usage, 3 auth, 4 not found, 5 conflict, 6 partly failed, 7 time-out, 130 interrupted.

    Shell completion: eval "$(_HUAFANG_COMPLETE=bash_source huafang)", or zsh_source, or fish_source.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    shell = Shell()
    prepare_streams()
    try:
        code = huafang.main(arguments, prog_name="huafang", obj=shell, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Failure as failure:
        fail(shell, failure.message, failure.exit_code)
    except click.ClickException as error:
        print_usage_error(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail(shell, sentence("interrupted"), INTERRUPTED)
    except Error as error:
        fail(shell, error.message, exit_code_of(error.status))
    except Exception as error:
        fail(shell, describe(error), ERROR)


def fail(shell: Shell, message: str, code: int) -> NoReturn:
    if shell.debug:
        traceback.print_exc()
    print_line(f"huafang: {message}", err=True)
    try:
        sys.stdout.flush()
    except OSError:  # it found no room, nor would it at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def describe(error: Exception) -> str:
    """What nothing else has foreseen: a full disk, or a bug. A log file has the details of a bug, if there is room."""
    try:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return sentence("disk_is_full", folder=tempfile.gettempdir())
        return sentence("bug", log=write_traceback())
    except OSError:
        return sentence("bug_without_log", error=type(error).__name__)


def write_traceback() -> Path:
    """Write the traceback to a temporary file, or leave none. Any part of huafang may be broken: it uses none."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="huafang-", suffix=".log", encoding="utf-8", errors="backslashreplace", delete=False
    ) as file:
        try:
            traceback.print_exc(file=file)
            file.flush()
        except OSError:
            Path(file.name).unlink()
            raise
    return Path(file.name)
