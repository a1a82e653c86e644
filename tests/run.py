"""`./huafang test`: the static checks, then the suite.

`--all` includes the tests marked `long`; all other arguments go to pytest.
"""

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
CHECKS = (
    "ruff format --check --quiet .",
    "ruff check --quiet .",
    "lint-imports --no-logo",
    "mypy --no-error-summary",
)


def main(arguments: list[str]) -> int:
    for check in CHECKS:
        name, *rest = check.split()
        print(f"· {check}", flush=True)
        if failed := subprocess.run([Path(sys.executable).parent / name, *rest], cwd=HOME, check=False).returncode:
            print(f"{name} failed: the suite runs once that is fixed.", file=sys.stderr)
            return failed
    return subprocess.run(pytest(arguments), cwd=HOME, env=environment(), check=False).returncode


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
