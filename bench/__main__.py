"""`python -m bench NAME…` measures; `python -m bench all` measures everything and rewrites docs/10-performance.md.

`--quick` checks in a short run that a bench works, `--json` prints the results as JSON, `--check` exits 1 when a goal
of the design is missed, `--device cuda` renders with a model of the size of Stable Diffusion 1.x on an accelerator.
`python -m bench report` writes docs/10-performance.md from the results of earlier runs, which are in bench/results.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import BENCHES
from bench.harness import measurement
from bench.harness.measurement import Options
from bench.harness.report import write_report
from common.errors import Error
from worker.pipelines import registry


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=Text)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", choices=(*BENCHES, "all", "report"), help=", ".join(BENCHES)
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--device", default="stub", help="stub (the fake GPU), cuda, cuda:1, mps or cpu")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 with --quick")
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only the sides whose names contain this")
    given = parser.parse_args(arguments)
    options = Options(given.quick, given.device, given.rounds or (1 if given.quick else 3), given.only)
    if "report" in given.names:
        print(write_report())
        return 0
    if "all" in given.names:
        return every_bench([argument for argument in arguments if argument != "all"], options)
    return max([run(name, options, given.json, given.check) for name in given.names])


def run(name: str, options: Options, as_json: bool, check: bool) -> int:
    console = Console(stderr=True, highlight=False)
    try:
        result = measurement.measure(name, measurement.find(name), options, console.print)
    except Error as error:
        print(error.message, file=sys.stderr)
        return 1
    if options.device not in ("stub", "cpu"):
        result["machine"]["device"] = registry.describe(options.device)["name"]
    measurement.save(result, measurement.path_of(name, options))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result)
    missed = measurement.missed(result)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if check and missed else 0


def every_bench(flags: list[str], options: Options) -> int:
    """Run each bench in its own process, so that none inherits threads, memory or faults."""
    codes = [subprocess.run([sys.executable, "-m", "bench", name, *flags]).returncode for name in BENCHES]
    for name, code in zip(BENCHES, codes, strict=True):
        if code:
            print(f"{name}: exit {code}", file=sys.stderr)
    if not options.quick:
        print(write_report())
    return max(map(abs, codes))


def show(result: dict[str, Any]) -> None:
    console = Console()
    figures = Table("side", "measure", "median", "range", title=result["bench"], title_justify="left")
    for one in result["figures"]:
        figures.add_row(one["side"], one["measure"], f"{one['median']:.4g}", f"{one['low']:.4g} – {one['high']:.4g}")
    console.print(figures)
    goals = Table("compared", "median", "range", "goal", "")
    for one in result["goals"]:
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: ""}[one["met"]]
        low_high = f"{one['low']:.3g} – {one['high']:.3g}"
        goals.add_row(measurement.words(one), f"{one['median']:.3g}", low_high, measurement.bound(one), verdict)
    if result["goals"]:
        console.print(goals)


class Text(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
