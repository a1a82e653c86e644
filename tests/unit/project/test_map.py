"""The map of docs/01-overview.md is true, rooms stay rooms, and no file imports in a circle."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[3]
PRODUCT = ("api", "cli", "common", "embedded", "worker")
PACKAGES = (*PRODUCT, "bench", "migrations", "training")
# One file for each noun: they may have as many as there are nouns.
ONE_FILE_A_NOUN = {"api/routes", "api/services", "api/dashboard/views", "cli/commands"}
MOST_MODULES, MOST_LINES = 13, 320
WALK = re.compile(r"^\*\*One ([^*]+)\*\*.*?\n((?:\d+\. `[^`]+`.*\n)+)", re.MULTILINE)


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (HOME / package).rglob("*.py") if path.stem != "__init__")


def walks() -> dict[str, list[str]]:
    text = (HOME / "docs" / "01-overview.md").read_text()
    return {name: re.findall(r"^\d+\. `([^`]+)`", files, re.MULTILINE) for name, files in WALK.findall(text)}


def imports_of(path: Path, known: dict[str, Path]) -> set[Path]:
    """The modules of ours that a file imports, late imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {known[name] for name in names if name in known} - {path}


def test_the_map_walks_a_job_a_line_a_cancel_a_page_and_a_model() -> None:
    assert {name.split()[0] for name in walks()} == {"job", "line", "cancel", "page", "model"}


@pytest.mark.parametrize("name", walks())
def test_a_walk_has_at_most_twelve_files_that_exist_and_returns_to_none(name: str) -> None:
    files = walks()[name]
    assert [file for file in files if not (HOME / file).is_file()] == []
    assert len(files) == len(set(files)) <= 12


def test_no_file_imports_in_a_circle() -> None:
    paths = modules(*PACKAGES)
    known = {".".join(path.relative_to(HOME).with_suffix("").parts): path for path in paths}
    left = {path: imports_of(path, known) for path in paths}
    while done := [path for path, imported in left.items() if not imported & left.keys()]:
        for path in done:
            del left[path]
    assert [str(path.relative_to(HOME)) for path in left] == []


def test_a_room_has_at_most_thirteen_modules() -> None:
    rooms: dict[str, int] = {}
    for path in modules(*PRODUCT):
        room = path.parent.relative_to(HOME).as_posix()
        rooms[room] = rooms.get(room, 0) + 1
    too_many = {room: n for room, n in rooms.items() if n > MOST_MODULES and room not in ONE_FILE_A_NOUN}
    assert too_many == {}


def test_a_module_is_short() -> None:
    lines = {str(path.relative_to(HOME)): len(path.read_text().splitlines()) for path in modules(*PRODUCT)}
    del lines["common/schema.py"]
    assert {path: n for path, n in lines.items() if n > MOST_LINES} == {}


def test_each_room_says_in_one_line_what_it_is() -> None:
    rooms = {path.parent for path in modules(*PRODUCT)}
    wordless = [
        str(room.relative_to(HOME))
        for room in rooms
        if len((ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or "\n").splitlines()) != 1
    ]
    assert wordless == []


def test_the_layers_of_common_worker_and_api_are_exhaustive() -> None:
    contracts = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    exhaustive = {container for one in contracts if one.get("exhaustive") for container in one["containers"]}
    assert exhaustive >= {"common", "worker", "api"}


def test_the_docs_are_numbered_without_gaps_and_say_whom_they_are_for() -> None:
    pages = sorted((HOME / "docs").glob("*.md"))
    assert [page.name[:3] for page in pages] == [f"{n:02}-" for n in range(1, len(pages) + 1)]
    assert [page.name for page in pages if not page.read_text().splitlines()[1].startswith("For ")] == []
