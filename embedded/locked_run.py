"""Run one program under its lock: `python -m embedded.locked_run NAME`, started in the farm's home.

Takes the lock, which the program inherits and holds while it lives; asks the kernel (on Linux) to stop the program when
its parent dies, so that a killed supervisor or test run leaves no process; then replaces itself by the program.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from embedded import sentence
from embedded.processes import SIGNALS, Program, lock_file, read_programs, take_lock

PR_SET_PDEATHSIG = 1


def main(name: str) -> None:
    home, parent = Path.cwd(), os.getppid()
    program = read_programs(home)[name]
    end_with(parent, program)
    try:
        lock = take_lock(lock_file(home, name), wait_s=30)
    except BlockingIOError:
        sys.exit(sentence("process_still_running", name=name))
    if program.stale_file:
        Path(program.stale_file).unlink(missing_ok=True)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    os.set_inheritable(lock, True)
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores SIGPIPE, and the program would inherit that
    os.execvpe(program.command[0], program.command, {**os.environ, **program.environment})


def end_with(parent: int, program: Program) -> None:
    """Stop this process by the program's stop signal when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGNALS[program.stop_signal], 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(sentence("parent_ended"))


if __name__ == "__main__":
    main(sys.argv[1])
