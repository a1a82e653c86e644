"""`./huafang test`: the static checks and the suite. mypy, which is slow on one core, runs beside the suite.

`--all` includes the tests marked `long`; all other arguments go to pytest.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
CHECKS = (
    "ruff format --check --quiet .",
    "ruff check --quiet .",
    "lint-imports --no-logo",
)
TYPES = "mypy --no-error-summary"


def main(arguments: list[str]) -> int:
    for check in CHECKS:
        if failed := start(check).wait():
            print(f"{check} failed: the suite runs once that is fixed.", file=sys.stderr)
            return failed
    types = start(TYPES, stdout=subprocess.PIPE)
    suite = subprocess.Popen(pytest(arguments), cwd=HOME, env=environment())
    found = types.communicate()[0]
    if types.returncode:
        suite.send_signal(signal.SIGINT)
    result = suite.wait()
    if types.returncode:
        print(f"{found}\n{TYPES} failed: the suite runs to its end once that is fixed.", file=sys.stderr)
    return types.returncode or result


def start(check: str, stdout: int | None = None) -> "subprocess.Popen[str]":
    print(f"· {check}", flush=True)
    name, *rest = check.split()
    return subprocess.Popen([Path(sys.executable).parent / name, *rest], cwd=HOME, stdout=stdout, text=True)


def pytest(arguments: list[str]) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal"]
    if "--all" in arguments:
        arguments = [argument for argument in arguments if argument != "--all"]
        command += ["-m", ""]
    return command + arguments


def environment() -> dict[str, str]:
    """One torch thread per process: with two each, two test processes on two cores are 5 to 50 times slower."""
    return {"OMP_NUM_THREADS": "1", **os.environ}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
