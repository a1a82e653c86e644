"""A small file system that a test fills: a tmpfs in a mount namespace of its own. Needs no root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from botocore.exceptions import BotoCoreError

from common.config import Settings
from common.storage import Storage
from embedded.instance import LOOPBACK, S3_ACCOUNT, Instance, choose_ports
from embedded.processes import Program, locked_command, private_folder, wait_until, write_programs
from embedded.servers import probe_s3, s3

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


@contextmanager
def program_on(disk: SmallDisk, program: Program, is_full: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """A program of a local farm whose home this disk is. `is_full`: the disk is when the program starts."""
    for name in ("run", "logs"):
        private_folder(disk.outside / name)
    write_programs(disk.outside, [program])
    if is_full:
        disk.fill()
    command = disk.enter("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(disk.folder))
    with subprocess.Popen(
        [*command, *locked_command(program.name)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def store_on(disk: SmallDisk) -> Iterator[Settings]:
    """The local farm's S3 server, with its data on this disk; the settings of a client, whose bucket is there."""
    names = ("postgres", "valkey", "s3", "api")
    instance = Instance(disk.outside, ports=choose_ports(LOOPBACK, {}), secrets=dict.fromkeys(names, "secret"))
    program = replace(s3(instance), data=str(disk.folder / "s3"))
    with program_on(disk, program) as child:
        assert wait_until(lambda: answers(instance), 240), child.poll()
        settings = Settings(
            s3_endpoint_url=f"http://{instance.host}:{instance.ports['s3']}",
            s3_access_key=S3_ACCOUNT,
            s3_secret_key="secret",
            s3_bucket="small",
        )
        Storage(settings).ensure_bucket()
        yield settings


def answers(instance: Instance) -> bool:
    try:
        probe_s3(instance)
    except BotoCoreError:
        return False
    return True
