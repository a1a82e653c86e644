"""The disks of a local farm: which of them are full. Knows the folders of its home, and nothing of what is in them.

A disk counts as full while little is left on it, not only when nothing is: Postgres ends when its log finds no room, so
the images, which take most of it, stop before.
"""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

RESERVE_BYTES = 64 * 2**20  # four segments of Postgres' write-ahead log
DATA, LOGS = ("s3", "postgres"), ("logs",)  # folders of the home
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class FullDisk:
    folder: Path
    has_data: bool  # else logs only


def is_full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < RESERVE_BYTES


def full_disks(home: Path) -> list[FullDisk]:
    """The full disks of the farm in this home, by the first folder on each; none where there is no farm."""
    disks: dict[int, FullDisk] = {}
    for folder in (home / name for name in (*DATA, *LOGS) if (home / name).is_dir()):
        if is_full(folder):
            disks.setdefault(folder.stat().st_dev, FullDisk(folder, folder.name in DATA))
    return list(disks.values())
