"""A run lists its skipped tests at its end, and fails because of them in the strict mode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[3]
SUITE = """
import pytest

@pytest.mark.needs("chromium")
def test_in_a_browser():
    raise AssertionError("ran without one")

def test_without():
    pass
"""


def run(suite: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (suite / "test_suite.py").write_text(SUITE)
    (suite / "pytest.ini").write_text("[pytest]\nmarkers = needs\n")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "xdist",
            "-p",
            "tests.needs",
            "-c",
            suite / "pytest.ini",
            *options,
            suite,
        ],
        cwd=HOME,
        env={
            **os.environ,
            "PATH": "/nonexistent",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "HUAFANG_TEST_STRICT": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_skipped_tests_are_listed(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stdout
    assert "1 × needs chromium (apt-get install chromium)" in done.stdout


@pytest.mark.parametrize("options", [(), ("-n1",)], ids=["alone", "xdist"])
def test_a_skipped_test_fails_a_strict_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = run(tmp_path, *options, HUAFANG_TEST_STRICT="1")
    assert done.returncode == 1, done.stdout
    assert "1 × needs chromium (apt-get install chromium)" in done.stdout


def test_a_run_of_no_test_fails(tmp_path: Path) -> None:
    assert run(tmp_path, "-k", "nothing").returncode == 5
