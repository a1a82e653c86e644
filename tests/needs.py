"""A pytest plugin: `@pytest.mark.needs("chromium")` skips a test where this machine lacks what it needs.

The end of the run lists the skipped tests and the packages that they need. With HUAFANG_TEST_STRICT=1 (CI) a skipped
test, whatever the reason, fails the run.
"""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def _has_hanzi() -> bool:
    if not shutil.which("fc-list"):
        return False
    return bool(subprocess.run(["fc-list", ":lang=zh"], capture_output=True, check=False).stdout)


def _has_pip() -> bool:
    """Of the Python that the suite's venv was made with."""
    python = os.path.realpath(sys.executable)
    code = "import importlib.util as u, sys; sys.exit(not (u.find_spec('pip') or u.find_spec('ensurepip')))"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def _can_unshare() -> bool:
    command = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@cache
def _can_mount_small_disk() -> bool:
    """With the extended attributes that Swift needs, which a tmpfs has since Linux 6.6."""
    from tests.support.small_disk import small_disk

    try:
        with TemporaryDirectory() as folder, small_disk(Path(folder), 2**20) as disk:
            os.mkdir(disk.outside / "any")
            os.setxattr(disk.outside / "any", "user.any", b"1")
    except (OSError, AssertionError):
        return False
    return True


# name: (whether this machine has it, the Debian package that brings it)
SYSTEM: dict[str, tuple[Callable[[], object], str]] = {
    "chromium": (lambda: shutil.which("chromium"), "chromium"),
    "curl": (lambda: shutil.which("curl"), "curl"),
    "hanzi": (_has_hanzi, "fonts-wqy-zenhei"),
    "small_disk": (_can_mount_small_disk, "util-linux"),
    "pip": (_has_pip, "python3-venv"),
    "unshare": (_can_unshare, "util-linux"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                has_it, package = SYSTEM[name]
                if not has_it():
                    item.add_marker(pytest.mark.skip(reason=f"needs {name} (apt-get install {package})"))


def _skip_reasons(config: pytest.Config) -> Counter[str]:
    """The reasons of all skipped tests. Under xdist only the controlling process has them."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("HUAFANG_TEST_STRICT") == "1" and not session.exitstatus and _skip_reasons(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if skip_reasons := _skip_reasons(config):
        terminalreporter.section("skipped")
        for reason, count in sorted(skip_reasons.items()):
            terminalreporter.line(f"{count} × {reason}")
