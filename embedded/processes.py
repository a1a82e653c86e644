"""The programs of a local farm: their command lines, and which of them are alive.

Each program runs by `embedded.locked_run` and holds a lock file while it or a child of it lives. So a killed program,
an orphan and a reused process id are never mistaken for one another. Knows neither the servers nor the supervisor.
"""

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from common.errors import Error, Unavailable
from common.sentences import Sentence
from embedded import sentence

CPU_STEP_S = 1.0  # an idle program takes minutes for it
MOST_START_S = 900  # for one program to start, on the slowest machine
PID_DIGITS = 10
SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}


@dataclass(frozen=True)
class Program:
    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "TERM"
    stop_s: int = 15  # seconds between the stop signal and SIGKILL
    stale_file: str | None = None  # left by a killed program, and would keep the next one from starting
    data: str | None = None  # the folder that it writes to: it starts only while that disk is not full


def locked_command(name: str) -> list[str]:
    """The command that runs a program of `write_programs`; its working folder has to be the farm's home."""
    return [sys.executable, "-P", "-m", "embedded.locked_run", name]


def write_programs(home: Path, programs: list[Program]) -> None:
    write_private(home / "run" / "programs.json", json.dumps({program.name: asdict(program) for program in programs}))


def read_programs(home: Path) -> dict[str, Program]:
    try:
        written = json.loads((home / "run" / "programs.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: Program(**{**values, "command": tuple(values["command"])}) for name, values in written.items()}


def lock_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.lock"


def is_alive(home: Path, name: str) -> bool:
    """Whether the program, or a child of it, still runs."""
    try:
        os.close(take_lock(lock_file(home, name)))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def take_lock(path: Path, wait_s: float = 0) -> int:
    """A descriptor that holds the lock. Raises BlockingIOError when another process holds it for `wait_s` seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise
            time.sleep(0.02)


def note_pid(lock: int, pid: int) -> None:
    """Write the holder's process id into its lock file. Always as long, so that a full disk has room for the next."""
    os.pwrite(lock, f"{pid:<{PID_DIGITS}}".encode(), 0)


@contextmanager
def exclusive(path: Path, wait_s: float, otherwise: Sentence) -> Iterator[None]:
    """Hold the lock during the block. Raises Unavailable(otherwise) where it is not free within `wait_s` seconds."""
    try:
        descriptor = take_lock(path, wait_s)
    except BlockingIOError:
        raise Unavailable(otherwise) from None
    try:
        yield
    finally:
        os.close(descriptor)


def stop_orphans(home: Path) -> None:
    """Stop the programs that a killed supervisor left: all at once, by SIGKILL after their `stop_s`."""
    programs = {name: program for name, program in read_programs(home).items() if is_alive(home, name)}
    for name, program in programs.items():
        send_signal(home, name, program.stop_signal)
    for name, program in programs.items():
        if not wait_until_ended(home, name, program.stop_s):
            send_signal(home, name, "KILL")
            if not wait_until_ended(home, name, 10):
                raise Error(sentence("process_does_not_end", name=name, home=home))


def send_signal(home: Path, name: str, stop_signal: str) -> None:
    """Signal the program; KILL goes to its whole process group."""
    with suppress(ProcessLookupError, ValueError):
        number = int(lock_file(home, name).read_text())
        (os.killpg if stop_signal == "KILL" else os.kill)(number, SIGNALS[stop_signal])


def wait_until_ended(home: Path, name: str, seconds: float) -> bool:
    return wait_until(lambda: not is_alive(home, name), seconds)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.03)
    return True


class StartDeadline:
    """Passes when a starting program has got no further for `quiet_s` seconds, and after MOST_START_S in any case.

    It gets further with each CPU_STEP_S of CPU time: on a slow machine it has some, and a program that hangs has none.
    """

    def __init__(self, home: Path, name: str, quiet_s: float) -> None:
        self._home, self._name, self._quiet_s = home, name, quiet_s
        self._began = self._advanced = time.monotonic()
        self._used = 0.0

    def has_passed(self, has_answered: bool = False) -> bool:
        """`has_answered`: the program works already and uses the CPU for that, so it only gets `quiet_s` more."""
        now = time.monotonic()
        if not has_answered and (used := cpu_seconds(self._home, self._name)) >= self._used + CPU_STEP_S:
            self._advanced, self._used = now, used
        return now - self._advanced > self._quiet_s or now - self._began > MOST_START_S


def cpu_seconds(home: Path, name: str) -> float:
    """The CPU time of the program's process and of its children; 0 where it does not run."""
    try:
        process = psutil.Process(int(lock_file(home, name).read_text()))
        return float(sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True))))
    except (OSError, ValueError, psutil.Error):
        return 0.0


def private_folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, atomically: after a crash it holds the old text or the new one."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
