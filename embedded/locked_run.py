"""Run one program under its lock: `python -m embedded.locked_run NAME`, started in the farm's home.

Takes the lock, which the program inherits and holds while it lives; asks the kernel (on Linux) to stop the program when
its parent dies, so that a killed supervisor or test run leaves no process; waits while the disk of the program's data
is full; then replaces itself by the program.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from common.disks import is_full
from embedded import sentence
from embedded.processes import SIGNALS, Program, lock_file, note_pid, read_programs, take_lock

PR_SET_PDEATHSIG = 1
ROOM_CHECK_S = 1.0


def main(name: str) -> None:
    home, parent = Path.cwd(), os.getppid()
    program = read_programs(home)[name]
    end_with(parent, program)
    try:
        lock = take_lock(lock_file(home, name), wait_s=30)
    except BlockingIOError:
        sys.exit(sentence("process_still_running", name=name))
    note_pid(lock, os.getpid())
    if program.data:
        wait_for_room(Path(program.data))
    if program.stale_file:
        Path(program.stale_file).unlink(missing_ok=True)
    os.set_inheritable(lock, True)
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores SIGPIPE, and the program would inherit that
    os.execvpe(program.command[0], program.command, {**os.environ, **program.environment})


def wait_for_room(data: Path) -> None:
    """Return when the disk of this folder is not full. Postgres would start there, end for want of room, and so on."""
    if is_full(data):
        print(sentence("waits_for_room", folder=data), file=sys.stderr, flush=True)
    while is_full(data):
        time.sleep(ROOM_CHECK_S)


def end_with(parent: int, program: Program) -> None:
    """Stop this process by the program's stop signal when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGNALS[program.stop_signal], 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(sentence("parent_ended"))


if __name__ == "__main__":
    main(sys.argv[1])
