"""The composition root: the table of all commands, and what an error looks like from outside.

A command is imported when it is called, so that `huafang --help` costs no more than Click. Local commands start
`python -m api | worker | embedded | common.bootstrap`; all others talk HTTP (`cli.client`). Knows no command's options.
"""

import io
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from cli.shell import Failure, Shell, global_options
from common.errors import Error

# name: the module that has a command of this name, and its line in the help.
COMMANDS = {
    "demo": ("cli.commands.demo", "Set up a local farm, render a few Chinese prompts, show where the pictures are."),
    "test": ("cli.commands.farm", "Set everything up and run the test suite (./huafang test, in a clone)."),
    "up": ("cli.commands.farm", "Start the local farm, or find it running."),
    "down": ("cli.commands.farm", "Stop the local farm; its data stays."),
    "status": ("cli.commands.farm", "Show what of the local farm is running."),
    "generate": ("cli.commands.generate", "Render a prompt and download the pictures."),
    "jobs": ("cli.commands.jobs", "List, show, watch, cancel and retry jobs."),
    "batch": ("cli.commands.batch", "Submit, list, watch, pause, resume, cancel and retry batches."),
    "grid": ("cli.commands.grid", "Compare models, schedulers, steps or guidance side by side."),
    "dataset": ("cli.commands.dataset", "Export batches as datasets, list and verify them."),
    "models": ("cli.commands.models", "List the models, check their files."),
    "workers": ("cli.commands.workers", "List, drain and resume render workers."),
    "keys": ("cli.commands.keys", "Create, list and revoke API keys."),
    "admin": ("cli.commands.admin", "Prepare a farm's database: migrate, bootstrap."),
    "doctor": ("cli.commands.doctor", "Check this machine and the farm; say what to do about what is wrong."),
    "serve": ("cli.commands.serve", "Be one process of a farm: api, worker or control."),
}


class Contents(click.Group):
    """The root group: knows its commands by the table, and imports the one that is called."""

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
        named = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return named or super().shell_complete(ctx, incomplete)


@click.command(cls=Contents, params=global_options(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="huafang", message="%(prog)s %(version)s")
def huafang() -> None:
    """Huafang (画坊): a render farm for Chinese text-to-image diffusion.

    Data goes to stdout, progress to stderr. Without --url the local farm (huafang up) is asked. Exit codes: 0 ok,
    1 error, 2 usage, 3 auth, 4 not found, 5 conflict, 6 partly failed, 7 time-out, 130 interrupted.

    Shell completion: eval "$(_HUAFANG_COMPLETE=bash_source huafang)", or zsh_source, or fish_source.
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    shell = Shell()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without hanzi is no reason to fail
    try:
        code = huafang.main(arguments, prog_name="huafang", obj=shell, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except Failure as failure:
        end(shell, failure.message, failure.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        end(shell, "Interrupted.", 130)
    except Error as error:
        end(shell, error.message, Failure.code_of(error.status))
    except Exception:
        end(shell, f"This is a bug in huafang; {keep_traceback()} has the details (--debug shows them).", 1)


def end(shell: Shell, sentence: str, code: int) -> NoReturn:
    if shell.debug:
        traceback.print_exc()
    click.echo(f"huafang: {sentence}", err=True)
    sys.exit(code)


def keep_traceback() -> Path:
    """Write the traceback where a person finds it, without any part of huafang that may be what is broken."""
    with tempfile.NamedTemporaryFile("w", prefix="huafang-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return Path(file.name)
