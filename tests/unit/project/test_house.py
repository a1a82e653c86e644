"""The rules of the house that no linter holds: names, pins, extras, and who may read the environment."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOME = Path(__file__).resolve().parents[3]
PYPROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OURS = {"api", "bench", "cli", "common", "embedded", "migrations", "models", "tests", "training", "worker"}
EXTRAS = PROJECT["optional-dependencies"]

# What is declared though no line of ours names it, and who wants it.
ASKED_FOR_BY_OTHERS = {
    "accelerate": "diffusers, to load weights without a second copy in memory",
    "httptools": "uvicorn",
    "peft": "diffusers, for LoRAs",
    "protobuf": "sentencepiece, to read a vocabulary",
    "python-multipart": "FastAPI, to read the dashboard's forms",
    "scipy": "diffusers' schedulers, where a checkpoint's config has use_beta_sigmas",
    "uvloop": "uvicorn",
}


packages_distributions = cache(metadata.packages_distributions)


def sources(package: str) -> list[Path]:
    return sorted((HOME / package).rglob("*.py"))


def imports(package: str) -> set[str]:
    """The top-level names that any line of the package imports, late imports included."""
    names = set()
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def wanted(lines: list[str], *extras: str) -> list[Requirement]:
    """Those of these requirements that count on this machine."""
    found = [Requirement(line) for line in lines]
    return [one for one in found if not one.marker or any(one.marker.evaluate({"extra": e}) for e in ("", *extras))]


@cache
def installed_with(*extras: str) -> set[str]:
    """All that an install with these extras brings, dependencies of dependencies included."""
    found: set[tuple[str, frozenset[str]]] = set()
    todo = wanted([*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])])
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key not in found:
            found.add(key)
            todo += wanted(requires(one.name) or [], *one.extras)
    return {name for name, _ in found}


def test_no_dependency_ships_one_of_our_names() -> None:
    shipped = packages_distributions()
    strangers = {name: [owner for owner in shipped.get(name, []) if owner != "huafang"] for name in OURS}
    assert {name: owners for name, owners in strangers.items() if owners} == {}


def test_every_package_is_in_the_wheel() -> None:
    found = {path.parent.name for path in HOME.glob("*/__init__.py")}
    shipped = set(PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert found - {"bench", "tests", "training"} <= shipped


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("api", ()),
        ("cli", ("datasets",)),
        ("common", ("datasets",)),
        ("migrations", ()),
        ("worker", ("worker", "datasets")),
        ("embedded", ("local",)),
    ],
)
def test_an_install_brings_all_that_a_package_imports(package: str, extras: tuple[str, ...]) -> None:
    """The images of deploy/ install no more than this; the suite runs with everything and would not notice."""
    owners = packages_distributions()
    there = installed_with(*extras)
    missing = {name for name in imports(package) if not there & set(map(canonicalize_name, owners.get(name, [])))}
    assert missing == set()


def test_the_api_and_a_control_worker_start_without_the_worker_extra() -> None:
    """deploy/api.Dockerfile runs both, and what makes an image large is not in it."""
    there = installed_with("datasets")
    blocked = {
        module for module, names in packages_distributions().items() if not there & {*map(canonicalize_name, names)}
    }
    wanted_there = (
        "import api.app, api.__main__, worker.__main__, worker.datasets.exporter, worker.control.sweep, worker.tasks"
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({sorted(blocked)})); {wanted_there}"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_dependency_is_used() -> None:
    text = "\n".join(path.read_text() for package in OURS - {"bench", "tests"} for path in sources(package))
    modules: dict[str, list[str]] = {}
    for module, names in packages_distributions().items():
        for name in names:
            modules.setdefault(canonicalize_name(name), []).append(module)
    lines = wanted([*PROJECT["dependencies"], *EXTRAS["worker"], *EXTRAS["datasets"], *EXTRAS["local"]])
    declared = {canonicalize_name(line.name) for line in lines} - ASKED_FOR_BY_OTHERS.keys()
    unused = {name for name in declared if not any(re.search(rf"\b{module}\b", text) for module in modules[name])}
    assert unused == set()


def test_constraints_pin_every_dependency_and_no_address() -> None:
    lines = [line for line in (HOME / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if "://" in line or " @ " in line] == []
    pinned = {canonicalize_name(Requirement(line).name): Requirement(line).specifier for line in lines}
    for text in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        wanted = Requirement(text)
        (pin,) = pinned[canonicalize_name(wanted.name)]
        assert pin.operator == "==", text
        assert pin.version in wanted.specifier, text


def test_only_config_reads_the_environment() -> None:
    readers = [
        f"{path.relative_to(HOME)}:{node.lineno}"
        for package in ("api", "common", "worker")
        for path in sources(package)
        if path != HOME / "common" / "config.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    ]
    assert readers == []
