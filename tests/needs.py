"""`@pytest.mark.needs("chromium")`: a test that wants a package of the system is left out where that is missing.

A pytest plugin. What was left out, and how to get it, stands at the end of the run; with HUAFANG_TEST_STRICT=1 (CI) a
test left out, for whatever reason, fails the run: a suite that quietly shrinks is green for nothing.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest


def _has_hanzi() -> bool:
    if not shutil.which("fc-list"):
        return False
    return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout)


def _has_pip() -> bool:
    """The Python below the suite's venv, which ./huafang was started with."""
    python = os.path.realpath(sys.executable)
    code = "import importlib.util as u, sys; sys.exit(not (u.find_spec('pip') or u.find_spec('ensurepip')))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _may_unshare() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


# What a test may need: how to see that it is there, and the Debian package that brings it.
SYSTEM: dict[str, tuple[Callable[[], object], str]] = {
    "chromium": (lambda: shutil.which("chromium"), "chromium"),
    "curl": (lambda: shutil.which("curl"), "curl"),
    "hanzi": (_has_hanzi, "fonts-wqy-zenhei"),
    "pip": (_has_pip, "python3-venv"),
    "unshare": (_may_unshare, "util-linux"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                is_there, package = SYSTEM[name]
                if not is_there():
                    item.add_marker(pytest.mark.skip(reason=f"needs {name} (apt-get install {package})"))


def _left_out(config: pytest.Config) -> Counter[str]:
    """The reasons of all skipped tests. Under xdist only the process that reports knows them."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("HUAFANG_TEST_STRICT") == "1" and not session.exitstatus and _left_out(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := _left_out(config):
        terminalreporter.section("left out")
        for reason, count in sorted(left_out.items()):
            terminalreporter.line(f"{count} × {reason}")
