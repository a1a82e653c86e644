"""Supervisord: its configuration, its start and stop, and the states of its processes.

Supervisord restarts programs that end, rotates their logs and answers XML-RPC on a Unix socket in the farm's home.
`embedded.tolerant_supervisord` runs it. Knows programs by name only; each runs by `embedded.locked_run`.
"""

import hashlib
import http.client
import os
import resource
import socket
import subprocess
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import Error, Unavailable
from embedded import sentence
from embedded.processes import (
    Program,
    StartDeadline,
    is_alive,
    lock_file,
    locked_command,
    note_pid,
    private_folder,
    send_signal,
    take_lock,
    wait_until_ended,
)

NAME = "supervisord"
MAX_SOCKET_PATH = 90  # bytes; the kernel's limit is 107, and supervisord creates it under a longer name first
START_TIMEOUT_S = 20  # without progress
# supervisord's own demands, which it makes before it opens its log.
LIMITS = {
    resource.RLIMIT_NOFILE: ("open files (ulimit -n)", 1024),
    resource.RLIMIT_NPROC: ("processes (ulimit -u)", 200),
}
OPTIONS = ("--nodaemon", "--silent", "-c", "run/supervisord.conf")
LOG_BYTES, LOGS_KEPT = "10MB", 3
COMMON_SECTIONS = f"""[supervisord]
logfile=logs/{NAME}.log
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOGS_KEPT}
pidfile=run/{NAME}.pid
childlogdir=logs
umask=077
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[unix_http_server]
chmod=0700
"""


@dataclass(frozen=True)
class Process:
    name: str
    state: str
    pid: int | None
    uptime_s: int


def start(home: Path, groups: dict[str, list[Program]]) -> None:
    """Start supervisord and the first group. Groups stop in reverse order, one after the other."""
    (home / "run" / "supervisord.conf").write_text(configuration(home, groups))
    lock = take_lock(lock_file(home, NAME), wait_s=5)
    try:
        with open(home / "logs" / f"{NAME}.out", "wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", "embedded.tolerant_supervisord", *OPTIONS],
                cwd=home,
                env={**os.environ, "FARM_PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                pass_fds=[lock],
            )
        note_pid(lock, child.pid)
    finally:
        os.close(lock)
    deadline = StartDeadline(home, NAME, START_TIMEOUT_S)
    while not answers(home):
        if child.poll() is not None or deadline.has_passed():
            # What keeps it from opening its log is in the other file.
            written = [file for suffix in ("out", "log") if (file := home / "logs" / f"{NAME}.{suffix}").exists()]
            raise Unavailable(sentence("supervisor_failed", log=written[-1]))
        time.sleep(0.03)


def check_limits() -> None:
    """Raises Unavailable where a hard limit of this shell is lower than supervisord accepts."""
    for limit, (name, needed) in LIMITS.items():
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise Unavailable(sentence("limit_too_low", name=name, limit=hard, needed=needed))


def configuration(home: Path, groups: dict[str, list[Program]]) -> str:
    """The text of supervisord.conf. All paths but the socket's are relative: the home's path may have any character."""
    path = socket_path(home)
    text = COMMON_SECTIONS + f"file={path.relative_to(home) if path.is_relative_to(home) else path}\n"
    for order, (group, programs) in enumerate(groups.items()):
        names = ",".join(program.name for program in programs)
        text += f"[group:{group}]\nprograms={names}\npriority={order}\n"
        for program in programs:
            text += program_section(program, autostart=order == 0)
    return text


def program_section(program: Program, autostart: bool) -> str:
    command = " ".join(['"%(ENV_FARM_PYTHON)s"', *locked_command(program.name)[1:]])
    return f"""[program:{program.name}]
command={command}
autostart={str(autostart).lower()}
autorestart=true
startretries=100
stopsignal={program.stop_signal}
stopwaitsecs={program.stop_s}
killasgroup=true
redirect_stderr=true
stdout_logfile=logs/{program.name}.log
stdout_logfile_maxbytes={LOG_BYTES}
stdout_logfile_backups={LOGS_KEPT}
"""


def is_running(home: Path) -> bool:
    return is_alive(home, NAME)


def answers(home: Path) -> bool:
    """Whether supervisord runs and is not stopping."""
    try:
        return bool(call(home, "getState")["statename"] == "RUNNING")
    except Unavailable:
        return False


def stop(home: Path) -> None:
    """Stop all processes in order, then supervisord; after 90 seconds kill it."""
    send_signal(home, NAME, "TERM")
    if not wait_until_ended(home, NAME, 90):
        send_signal(home, NAME, "KILL")
        if not wait_until_ended(home, NAME, 10):
            raise Error(sentence("process_does_not_end", name=NAME, home=home))


def start_group(home: Path, group: str) -> None:
    """Start the programs of the group that do not run."""
    call(home, "startProcessGroup", group, False)


def processes(home: Path) -> list[Process]:
    return [
        Process(
            name=info["name"],
            state=info["statename"].lower(),
            pid=info["pid"] or None,
            uptime_s=info["now"] - info["start"] if info["pid"] else 0,
        )
        for info in call(home, "getAllProcessInfo")
    ]


def call(home: Path, method: str, *arguments: Any) -> Any:
    with xmlrpc.client.ServerProxy("http://supervisor", transport=UnixTransport(socket_path(home))) as server:
        try:
            return getattr(server.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise Unavailable(sentence("supervisor_unreachable", home=home, reason=error)) from error


class UnixTransport(xmlrpc.client.Transport):
    """With a timeout: supervisor's own transport waits forever for a process that does not answer."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return UnixConnection(self.path)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def socket_path(home: Path) -> Path:
    path = home / "run" / "supervisor.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]
    folder = private_folder(Path(f"/tmp/huafang-{os.geteuid()}-{name}"))
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o077:
        raise Error(sentence("folder_of_another_user", folder=folder))
    return folder / "supervisor.sock"
