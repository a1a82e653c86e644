"""A small file system that a test fills: a tmpfs in a mount namespace of its own. Needs no root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec cat'  # cat ends with its standard input
FILLER, BLOCK_BYTES = "filler", 2**16


@dataclass(frozen=True)
class SmallDisk:
    folder: Path  # what its own processes call it
    pid: int  # of a process that lives there

    @property
    def outside(self) -> Path:
        """The folder, as processes of other namespaces reach it."""
        return Path(f"/proc/{self.pid}/root{self.folder}")

    @property
    def free(self) -> int:
        found = os.statvfs(self.outside)
        return found.f_bavail * found.f_frsize

    def fill(self, but: int = 0) -> None:
        """Leave so many bytes free."""
        with suppress(OSError), open(self.outside / FILLER, "ab", buffering=0) as filler:
            while self.free > but:
                filler.write(bytes(min(BLOCK_BYTES, self.free - but)))

    def make_room(self) -> None:
        (self.outside / FILLER).unlink()

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command there."""
        return ["nsenter", f"--target={self.pid}", "--user", "--mount", "--preserve-credentials", *command]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """`folder` is empty, and stays so in other namespaces. Its content is gone once no process lives there."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", str(size), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "mounted\n"
        try:
            yield SmallDisk(folder, holder.pid)
        finally:
            holder.stdin.close()
