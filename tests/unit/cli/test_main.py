"""The command line as a whole: help, completion and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, huafang
from tests.support.command_line import HUAFANG, CommandLine, run_process

HEAVY = ("httpx", "rich", "pydantic", "fastapi", "sqlalchemy", "celery", "boto3", "redis", "torch", "numpy", "alembic")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("HUAFANG_HOME", str(tmp_path / "home"))
    return CommandLine(capsys)


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    below = {name: command.get_command(context, name) for name in command.list_commands(context)}
    return [path, *(found for name, each in below.items() if each for found in every_command(each, (*path, name)))]


@pytest.mark.parametrize("path", every_command(huafang), ids=" ".join)
def test_every_command_has_help(call: CommandLine, path: tuple[str, ...]) -> None:
    done = call(*path, "--help")
    assert done.code == 0
    assert " ".join(["Usage: huafang", *path]) in done.out


@pytest.mark.parametrize("path", every_command(huafang), ids=" ".join)
def test_every_command_takes_the_global_options(call: CommandLine, path: tuple[str, ...]) -> None:
    is_group = len([one for one in every_command(huafang) if one[: len(path)] == path]) > 1
    assert is_group or call(*path, "--format", "json", "--help").code == 0


def test_there_are_at_most_60_commands() -> None:
    groups = (
        "serve",
        "jobs",
        "batch",
        "dataset",
        "models",
        "workers",
        "keys",
        "tenants",
        "admin",
        "label",
        "policy",
        "styles",
        "",
    )
    assert len([path for path in every_command(huafang) if " ".join(path) not in groups]) <= 60


def test_help_lists_every_command_and_imports_none(call: CommandLine) -> None:
    code = f"""
import sys
from cli.main import main
try:
    main(["--help"])
except SystemExit:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    loaded += [name for name in sys.modules if name.startswith("cli.commands")]
    sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_shell_completion() -> None:
    environment = {**os.environ, "_HUAFANG_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    assert run_process(environment={**environment, "COMP_WORDS": "huafang mo"}).out == "plain,models\n"
    inside = run_process(environment={**environment, "COMP_WORDS": "huafang jobs c", "COMP_CWORD": "2"})
    assert inside.out == "plain,cancel\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["jobs", "ls", "--nonsense"], ["generate"], ["--format=xml", "up"]]
)
def test_usage_errors_exit_2(call: CommandLine, arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


def test_a_bug_is_one_sentence_and_a_log(call: CommandLine, boom: str) -> None:
    done = call(boom)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1
    log = Path(next(word for word in done.err.split() if word.endswith(".log")))
    assert "nobody thought of this" in log.read_text()
    log.unlink()
    assert "Traceback" in call("--debug", boom).err


def test_a_wrong_setting_is_one_sentence(call: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUAFANG_LEASE_S", "soon")
    for arguments in (["models", "ls"], ["serve", "worker"], ["up"]):
        done = call(*arguments)
        assert done.code == 2
        assert done.err.startswith("huafang: A setting is wrong: HUAFANG_LEASE_S: ")
        assert len(done.err.splitlines()) == 1


def test_without_a_farm_it_says_how_to_start_one(call: CommandLine) -> None:
    done = call("jobs", "ls")
    assert (done.code, done.out) == (1, "")
    assert "no local farm" in done.err
    assert " up`" in done.err


def test_status_without_a_farm_is_not_found(call: CommandLine) -> None:
    done = call("status")
    assert (done.code, done.out) == (4, "")
    assert "huafang up" in done.err


def test_global_options_work_after_the_command_too(call: CommandLine) -> None:
    before, behind = (
        call("--format=json", "models", "verify", "zh-v0"),
        call("models", "verify", "zh-v0", "--format=json"),
    )
    assert json.loads(before.out) == json.loads(behind.out) != []


def test_version() -> None:
    done = subprocess.run([*HUAFANG, "--version"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("huafang ")
