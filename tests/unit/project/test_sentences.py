"""Each room's table of sentences and its calls agree: no code is missing, left over, or short of a parameter."""

import ast
import copy
import string
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from common.sentences import Sentences

HOME = Path(__file__).resolve().parents[3]
PACKAGES = ("api", "cli", "common", "embedded", "worker")
ROOMS = [p.parent.relative_to(HOME).as_posix() for name in PACKAGES for p in (HOME / name).rglob("sentences.toml")]


class Call(NamedTuple):
    where: str
    code: str
    params: frozenset[str]


def table(room: str) -> dict[str, str]:
    return tomllib.loads((HOME / room / "sentences.toml").read_text())


@cache
def modules() -> dict[Path, tuple[list[ast.ImportFrom], list[ast.Call]]]:
    """Of each module its imports and its calls."""
    found = {}
    for path in (path for package in PACKAGES for path in sorted((HOME / package).rglob("*.py"))):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found[path] = (
            [node for node in nodes if isinstance(node, ast.ImportFrom)],
            [node for node in nodes if isinstance(node, ast.Call)],
        )
    return found


def calls(room: str) -> list[Call]:
    """All calls of the `sentence` of this room, under whatever name a module imports it."""
    found = []
    for path, (imports, calls_there) in modules().items():
        names = {
            alias.asname or alias.name
            for node in imports
            if node.module == room.replace("/", ".")
            for alias in node.names
            if alias.name == "sentence"
        }
        for node in calls_there:
            if getattr(node.func, "id", None) in names:
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno} computes its code"
                params = frozenset(keyword.arg or "**" for keyword in node.keywords)
                found.append(Call(f"{path.relative_to(HOME)}:{node.lineno}", str(node.args[0].value), params))
    return found


def fields(text: str) -> set[str]:
    return {name.partition(".")[0].partition("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("room", ROOMS)
def test_the_calls_and_the_table_of_a_room_agree(room: str) -> None:
    texts, said = table(room), calls(room)
    assert [call for call in said if call.code not in texts] == []
    assert [call for call in said if call.code in texts and call.params != fields(texts[call.code])] == []
    assert texts.keys() - {call.code for call in said} == set(), "left over"


def test_a_sentence_is_its_text_and_knows_its_code(tmp_path: Path) -> None:
    (tmp_path / "sentences.toml").write_text('too_small = "has {side} pixels"')
    sentence = Sentences(str(tmp_path / "__init__.py"))
    said = copy.deepcopy(sentence("too_small", side=7))
    assert said == "has 7 pixels"
    assert (said.code, said.params) == ("too_small", {"side": 7})
    with pytest.raises(KeyError):
        sentence("too_small")
