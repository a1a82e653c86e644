"""Tiny checkpoints: one that a test may damage, and one that foreign checkpoints are made from."""

import shutil
from pathlib import Path

import pytest

from tests.support import checkpoints, foreign


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("template"))


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "tiny")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> foreign.Plain:
    return foreign.plain(tmp_path_factory.mktemp("plain") / "tiny")
