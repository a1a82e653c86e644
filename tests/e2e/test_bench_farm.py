"""One side of one bench, run by its command: a whole farm is started, measured and deleted."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

HOME = Path(__file__).resolve().parents[2]


def test_a_bench_measures_a_farm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bench",
        "farm_vs_bare",
        "--quick",
        "--json",
        "--only",
        "farm, instant store, 200 ms",
    ]
    started = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=HOME, env=started, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    figure = json.loads(done.stdout)["figures"][0]
    assert (figure["side"], figure["measure"]) == ("farm, instant store, 200 ms", "images/s")
    assert figure["median"] > 0
    assert list(tmp_path.glob("huafang-bench-*")) == []
    assert [one.info["cmdline"] for one in psutil.process_iter(["cmdline", "environ"]) if _is_of(one, tmp_path)] == []


def _is_of(process: psutil.Process, folder: Path) -> bool:
    """Whether that bench started it: all its processes inherit TMPDIR."""
    return (process.info["environ"] or {}).get("TMPDIR") == str(folder)
