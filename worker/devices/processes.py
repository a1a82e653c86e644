"""One worker process for each device, under one parent that starts again what ends. Knows neither torch nor the farm.

    parent ── SIGTERM, SIGINT ──► every worker, each in a process group of its own: a terminal signals the parent only
    the parent dies ── kernel ──► every worker, on Linux

Workers of different devices share nothing: when one ends, the others go on.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from common.log import log_event
from worker.devices import sentence

PR_SET_PDEATHSIG = 1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before an ended worker is started again
STEADY_S = 60.0  # a worker that ran so long was no failed start


def serve_each(devices: Sequence[str], name: str | None, arguments: Sequence[str] = ()) -> int:
    """Run `python -m worker render` on each device until a signal ends this process; the exit code.

    The farm knows a worker by its name: it is `name` (None: this host's) with the device.
    """
    command = [sys.executable, "-P", "-m", "worker", "render", "--parent", str(os.getpid()), *arguments]
    names = {device: name_of(name and f"{name}-{device}", device) for device in devices}
    return Processes({names[d]: [*command, "--device", d, "--name", names[d]] for d in devices}).run()


def name_of(given: str | None, device: str) -> str:
    """What people know a worker by, and the farm from one start of it to the next."""
    return given or f"{socket.gethostname()}-{device}"


def end_with(parent: int) -> None:
    """Let the kernel send this process SIGTERM when its parent, of this id, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(sentence("parent_ended"))


class Processes:
    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._commands = commands
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()

    def run(self) -> int:
        """Return 0 when all have ended after a signal. For the main thread of a process."""
        # One thread each: the kernel takes the end of the thread that started a process for the end of the parent.
        threads = [threading.Thread(target=self._keep, args=(name,), name=name) for name in self._commands]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 0

    def _keep(self, name: str) -> None:
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            # Descriptors are not closed: the lock that the local farm gives each of its programs is among them.
            process = subprocess.Popen(self._commands[name], process_group=0, close_fds=False)
            self._running[name] = process
            if self._stopping.is_set():  # the signal came too early for this process
                process.terminate()
            code = process.wait()
            if self._stopping.is_set():
                return
            pause = FIRST_PAUSE_S if time.monotonic() - started > STEADY_S else pause
            log_event("worker_process_ended", name=name, code=code, again_s=pause)
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._stopping.set()
        for process in list(self._running.values()):
            process.send_signal(number)
