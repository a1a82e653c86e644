"""A command with a bug, beside the product's."""

import sys
import types

import click
import pytest

from cli.main import COMMANDS


@pytest.fixture
def boom(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the command. It raises ZeroDivisionError."""

    @click.command()
    def command() -> None:
        raise ZeroDivisionError("nobody thought of this")

    module = types.ModuleType("boom")
    module.boom = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "boom", module)
    monkeypatch.setitem(COMMANDS, "boom", ("boom", ""))
    return "boom"
