"""`python -m bench.gpu` measures, in at most eight minutes, what can be seen on a GPU only; it needs no download.

Each case is a process with a time limit of its own: what it had measured when the time was over is kept, and the next
one starts. The result is one file of JSON, written anew after each figure: device, commit, versions, cases. `--tiny`
runs the same on a CPU with tiny models, to see that it works before a machine is lent.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any

from bench.harness import measurement

SECONDS = 480.0
KILLED_AFTER_S = 5.0


@dataclass(frozen=True)
class Case:
    name: str
    seconds: float
    module: str


CASES = (
    Case("sd-1.5", 85, "bench.gpu.throughput"),
    Case("sdxl", 115, "bench.gpu.throughput"),
    Case("z-image", 130, "bench.gpu.throughput"),
    Case("mixed queue", 130, "bench.gpu.mixed"),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with tiny models")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all cases together")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose names contain this")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu.json, quick/gpu.json with --tiny")
    given = parser.parse_args(arguments)
    out = given.out or measurement.RESULTS / ("quick/gpu.json" if given.tiny else "gpu.json")
    began = time.monotonic()
    cases: list[dict[str, Any]] = []
    result = {
        "commit": measurement.commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "tiny": given.tiny,
        "machine": measurement.machine(),
        "versions": measurement.versions(),
        "cases": cases,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    for case in (case for case in CASES if given.only in case.name):
        left = given.seconds - (time.monotonic() - began) - KILLED_AFTER_S
        found: dict[str, Any] = {"name": case.name, "figures": {}}
        cases.append(found)
        for _ in run(case, given.tiny, min(case.seconds, left), found):
            result["seconds"] = round(time.monotonic() - began, 1)
            out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        print(f"{case.name}: {found['ended']} after {found['seconds']} s", file=sys.stderr)
    print(out)
    return 0 if all(case["ended"] in ("done", "time") for case in cases) else 1


def run(case: Case, tiny: bool, limit_s: float, found: dict[str, Any]) -> Iterator[None]:
    """Run a case in a process group of its own. Yields whenever `found` has more."""
    found |= {"limit_s": round(limit_s, 1), "ended": "time", "seconds": 0}
    yield
    if limit_s <= 0:
        return
    began, is_over = time.monotonic(), False
    command = [sys.executable, "-m", case.module, case.name, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)

        def end(by: int = signal.SIGTERM) -> None:
            nonlocal is_over
            is_over = True
            with suppress(ProcessLookupError):
                os.killpg(child.pid, by)

        timers = [Timer(limit_s, end), Timer(limit_s + KILLED_AFTER_S, end, [signal.SIGKILL])]
        for timer in timers:
            timer.start()
        assert child.stdout
        for line in child.stdout:
            if line.startswith("{"):
                found["figures"] |= json.loads(line)
                yield
        code = child.wait()
        for timer in timers:
            timer.cancel()
        found["ended"] = "time" if is_over else "failed" if code else "done"
        found["seconds"] = round(time.monotonic() - began, 1)
        if found["ended"] == "failed":
            errors.seek(0)
            found["error"] = errors.read()[-2000:]
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
