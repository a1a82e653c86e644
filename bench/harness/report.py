"""Writes docs/10-performance.md and its plots from the JSON files of bench/results; no figure is typed by hand."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import BENCHES
from bench.harness.measurement import HOME, RESULTS, bound, words
from bench.harness.plot import plot

PAGE = HOME / "docs" / "10-performance.md"
PLOTS = HOME / "docs" / "images" / "bench"

INTRODUCTION = """# Performance
For operators who size a farm, and for developers who change its speed.

How fast the farm is, as ratios: both sides of each are measured on one machine in one run, in turn. Absolute figures
are of the machine named below each table, ratios should hold on others. `python -m bench all` measures everything again
and writes this page from `bench/results/*.json`; `python -m bench NAME --check` exits 1 where a goal is missed. Figures
are medians over the rounds, with their range; a ratio is taken within each round.
"""
NOT_MEASURED = """## On an accelerator
`python -m bench all --device cuda` runs the benches that have a device on one, with a randomly initialised model of the
size of Stable Diffusion 1.x. **No figure on this page was seen on an accelerator yet.**
"""


def write_report(results: Path = RESULTS, page: Path = PAGE, plots: Path = PLOTS) -> str:
    """Write the page. Returns a line about it."""
    found = [(path, json.loads(path.read_text())) for name in BENCHES for path in sorted(results.glob(f"{name}.*json"))]
    plots.mkdir(parents=True, exist_ok=True)
    for path, result in found:
        (plots / f"{path.stem}.svg").write_text(plot(result["figures"]))
    links = plots.relative_to(page.parent) if plots.is_relative_to(page.parent) else plots
    sections = ["\n".join(_section(result, f"{links}/{path.stem}.svg")) for path, result in found]
    accelerator = results / "accelerator.md"  # written by hand, from the logs of a machine that was lent for minutes
    if accelerator.exists():
        sections.append(accelerator.read_text())
    elif all(result["options"]["device"] == "stub" for _, result in found):
        sections.append(NOT_MEASURED)
    page.write_text("\n".join([INTRODUCTION, *_overview(result for _, result in found), *sections]))
    return f"{page.name}: {len(found)} of {len(BENCHES)} benches"


def _overview(results: Iterator[Mapping[str, Any]]) -> Iterator[str]:
    yield "| bench | compared | measured | goal | |"
    yield "|---|---|---|---|---|"
    for result in results:
        for goal in result["goals"]:
            if goal["met"] is not None:
                verdict = "met" if goal["met"] else "**missed**"
                yield f"| {result['bench']} | {words(goal)} | {goal['median']:.3g} | {bound(goal)} | {verdict} |"
    yield ""


def _section(result: Mapping[str, Any], plot_path: str) -> Iterator[str]:
    device = result["options"]["device"]
    yield f"## {result['bench']}" + ("" if device == "stub" else f" on {device}")
    yield f"{result['about']}\n"
    yield "| side | measure | median | range |"
    yield "|---|---|---|---|"
    for one in result["figures"]:
        yield f"| {one['side']} | {one['measure']} | {one['median']:.4g} | {one['low']:.4g} – {one['high']:.4g} |"
    yield ""
    if result["goals"]:
        yield "| compared | median | range | goal |"
        yield "|---|---|---|---|"
    for goal in result["goals"]:
        low_high = f"{goal['low']:.3g} – {goal['high']:.3g}"
        yield f"| {words(goal)} | {goal['median']:.3g} | {low_high} | {bound(goal)} |"
    yield f"\n![{result['bench']}]({plot_path})\n"
    yield _origin(result)


def _origin(result: Mapping[str, Any]) -> str:
    machine, count = result["machine"], len(result["rounds"])
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, load before {machine['load before']}"
    where = f"{machine['device']}; {where}" if "device" in machine else where
    what = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    rounds = f"{count} round{'' if count == 1 else 's'} in {result['seconds']} s"
    return f"<sub>Commit {result['commit']}, {result['date']} UTC, {rounds}; {where}; {what}.</sub>\n"
