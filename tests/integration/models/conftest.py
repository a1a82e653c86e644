"""A tiny checkpoint that a test may damage."""

import shutil
from pathlib import Path

import pytest

from tests.support import checkpoints


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("template"))


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "tiny")
