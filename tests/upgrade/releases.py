"""The releases of the story: the old one as a folder of its own, and the migration of one that comes after this."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from common.db import MIGRATIONS, newest_revision

HOME = Path(__file__).resolve().parents[2]
BASE = Path(__file__).with_name("BASE")

# What a release after this one might add: a table, a column with a default, and one without.
FUTURE = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "{number}", "{newest}", None, None


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("CREATE TABLE IF NOT EXISTS controls (id uuid PRIMARY KEY, strength float NOT NULL DEFAULT 1)")
        for table in ("batches", "jobs", "images", "lanes", "leases", "workers", "tenants", "datasets", "uploads"):
            op.execute(f"ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS later text")
            op.execute(f"ALTER TABLE {{table}} ADD COLUMN IF NOT EXISTS later_still int NOT NULL DEFAULT 7")
"""


def unpack_base(folder: Path) -> Path:
    """The tree of the old release."""
    commit = BASE.read_text().strip()
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", HOME, "archive", commit], capture_output=True, check=False
    )
    if done.returncode:
        pytest.fail(f"This clone lacks the old release {commit}: run `git fetch --unshallow`.", pytrace=False)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def future_migrations(folder: Path) -> tuple[Path, str]:
    """The migrations of this release and of one after it, and the id of that one's."""
    shutil.copytree(MIGRATIONS, folder)
    number = "r9000"
    text = FUTURE.format(number=number, newest=newest_revision())
    (folder / "versions" / f"{number}_future.py").write_text(text, encoding="utf-8")
    return folder, number


def environment_of(release: Path, variables: dict[str, str]) -> dict[str, str]:
    """For a process of this release: its modules come before those that are installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HUAFANG_", "COV_"))}
    return {**kept, **variables, "PYTHONPATH": str(release), "OMP_NUM_THREADS": "1"}


def migrate_by(release: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`huafang admin migrate` of this release; fails if the code is another's."""
    code = (
        f"from common import bootstrap as it; assert it.__file__.startswith({str(release)!r}), it.__file__; it.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "migrate"],
        cwd=release,
        env=environment_of(release, variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
