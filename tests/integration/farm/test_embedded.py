"""The local farm of `embedded`: what starts, what survives which kill, and that nothing runs once it is down.

Programs of a few lines replace the API and the workers: only their start and stop matters here.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis
from botocore.exceptions import ClientError

from common.config import Settings
from common.errors import Conflict, Error, Invalid, NotFound, Unavailable
from embedded import farm, instance, processes, servers, supervisor, users
from embedded.farm import Farm
from embedded.instance import Instance, choose_ports, find_instance, prepare_instance
from embedded.processes import Program, is_alive, lock_file, wait_until
from embedded.servers import Servers, s3_client, wait_for_server

API = """
import http.server, json
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
site = json.load(open("farm.json"))
http.server.HTTPServer((site["listen"], site["ports"]["api"]), Ready).serve_forever()
"""
CLIENTS = (
    Program("api", (sys.executable, "-c", API)),
    Program("control", ("sleep", "1000")),
    Program("worker-1", ("sh", "-c", "trap '' TERM; while :; do sleep 1; done"), stop_s=1),  # ends by SIGKILL only
)


def bring_up(home: Path, listen: str | None = None) -> Farm:
    return farm.up(Settings(home=home), listen=listen, clients=CLIENTS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running farm in a folder with an inconvenient name. A test that breaks it starts it again."""
    home = tmp_path_factory.mktemp("farm") / "a;b #%(c)s 画坊"
    bring_up(home)
    yield home
    farm.down(Settings(home=home))


def instance_of(home: Path) -> Instance:
    found = find_instance(home)
    assert found
    return found


def pids(found: Farm | None) -> dict[str, int | None]:
    assert found
    return {process.name: process.pid for process in found.processes}


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process whose working folder is that home or below."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def open_ports(instance: Instance) -> list[str]:
    def is_open(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((instance.host, port)) == 0

    return [service for service, port in instance.ports.items() if is_open(port)]


def write(home: Path) -> None:
    at = instance_of(home)
    with psycopg.connect(at.database_url(at.host)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('画')")
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"]) as client:
        client.set("kept", "画")
    s3_client(at).put_object(Bucket="huafang", Key="画.png", Body="画".encode())


def check_written(home: Path) -> None:
    at = instance_of(home)
    with psycopg.connect(at.database_url(at.host)) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("画",)
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"]) as client:
        assert client.ping()  # it keeps nothing: the farm recovers from an empty one
    assert s3_client(at).get_object(Bucket="huafang", Key="画.png")["Body"].read() == "画".encode()


def check_nothing_runs(home: Path) -> None:
    assert processes_of(home) == []
    assert open_ports(instance_of(home)) == []


def test_a_killed_process_restarts_with_its_data(home: Path) -> None:
    write(home)
    for name, pid in pids(farm.status(Settings(home=home))).items():
        os.kill(pid, signal.SIGKILL)
        assert wait_until(partial(has_restarted, home, name, pid), 60), name
    for name in servers.PROBES:
        wait_for_server(instance_of(home), name, lambda: False)
    check_written(home)


def test_a_farm_is_durable(home: Path) -> None:
    """By its settings: only a power cut would show the difference."""
    at = instance_of(home)
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with psycopg.connect(at.database_url(at.host)) as connection:
        shown = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(wanted)])
        assert dict(shown.fetchall()) == wanted
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"], decode_responses=True) as client:
        known = {name: client.config_get(name)[name] for name in ("appendonly", "save", "maxmemory-policy")}
    # Nothing of it is on the disk, so a full one does not reach it.
    assert known == {"appendonly": "no", "save": "", "maxmemory-policy": "noeviction"}


def has_restarted(home: Path, name: str, old: int) -> bool:
    return pids(farm.status(Settings(home=home)))[name] not in (None, old)


def test_a_second_up_finds_the_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = farm.status(Settings(home=home))
    monkeypatch.setattr(instance, "MIN_FREE_MB", 1 << 40)  # only a start needs room
    found = bring_up(home)
    assert pids(found) == pids(first)
    assert found.url == first.url
    with pytest.raises(Conflict, match="down"):
        bring_up(home, listen="127.0.0.2")


def test_up_and_down_clean_up_after_a_killed_supervisor(home: Path) -> None:
    write(home)
    before = pids(farm.status(Settings(home=home)))
    kill_supervisor(home)
    assert farm.status(Settings(home=home)) is None
    found = bring_up(home)
    assert set(pids(found).values()).isdisjoint(before.values())
    check_written(home)

    kill_supervisor(home)
    farm.down(Settings(home=home))
    check_nothing_runs(home)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(bring_up, [home, home])
    assert pids(one) == pids(other)
    check_written(home)


def kill_supervisor(home: Path) -> None:
    os.kill(int(lock_file(home, "supervisord").read_text()), signal.SIGKILL)
    assert wait_until(lambda: not is_alive(home, "supervisord"), 60)


def test_two_homes_run_at_once_one_of_them_deep_and_open_to_other_machines(home: Path, tmp_path: Path) -> None:
    second = tmp_path / ("deep" * 30)
    first = pids(farm.status(Settings(home=home)))
    found = bring_up(second, listen="0.0.0.0")
    assert set(pids(found).values()).isdisjoint(first.values())
    at = instance_of(second)
    assert set(at.ports.values()).isdisjoint(instance_of(home).ports.values())
    write(second)
    joined = dict(line.removeprefix("export ").split("=", 1) for line in found.join)
    assert joined.keys() == found.environment.keys() - {"HUAFANG_KEY_PEPPER", "HUAFANG_HOME"}
    with psycopg.connect(joined["HUAFANG_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("画",)
    with redis.Redis.from_url(joined["HUAFANG_REDIS_URL"]) as client:
        assert client.get("kept") == "画".encode()
    assert joined["HUAFANG_S3_PUBLIC_URL"] == joined["HUAFANG_S3_ENDPOINT_URL"]
    from_outside = s3_client(replace(at, listen=at.public_host))
    link = from_outside.generate_presigned_url("get_object", Params={"Bucket": "huafang", "Key": "画.png"})
    assert link.startswith(joined["HUAFANG_S3_PUBLIC_URL"])
    assert httpx.get(link, trust_env=False).content == "画".encode()

    farm.down(Settings(home=second))
    check_nothing_runs(second)
    assert pids(farm.status(Settings(home=home))) == first


def test_secrets_are_private_and_in_no_command_line(home: Path) -> None:
    secrets = instance_of(home).secrets.values()
    assert home.stat().st_mode & 0o777 == 0o700
    open_files = [path for path in home.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    with_secrets = [path for path in open_files if any(secret in path.read_text(errors="ignore") for secret in secrets)]
    assert with_secrets == []
    for process in processes_of(home):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)


def test_every_server_refuses_a_wrong_password(home: Path) -> None:
    at = instance_of(home)
    wrong = Instance(home, ports=at.ports, secrets=dict.fromkeys(at.secrets, "wrong"))
    for name, complaint in (
        ("postgres", psycopg.OperationalError),
        ("valkey", redis.AuthenticationError),
        ("s3", ClientError),
    ):
        with pytest.raises(complaint):
            servers.PROBES[name](wrong)
    swift = psutil.Process(pids(farm.status(Settings(home=home)))["s3"])
    backs = [c.laddr.port for c in swift.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    backs.remove(at.ports["s3"])
    assert len(backs) == 3
    for port in backs:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/recon/version")
            assert connection.getresponse().status == 403


def test_status_is_json_for_programs_and_down_stops_everything(home: Path, farm_of: Callable[..., str]) -> None:
    shown = json.loads(farm_of("status", "--json"))
    at = instance_of(home)
    assert shown["url"] == f"http://127.0.0.1:{at.ports['api']}"
    assert shown["environment"] == farm.environment(Settings(home=home))
    assert {process["name"] for process in shown["processes"]} == {*servers.PROBES, "api", "control", "worker-1"}
    assert shown["join"] == []

    assert json.loads(farm_of("down", "--json")) is None
    check_nothing_runs(home)
    assert json.loads(farm_of("status", "--json")) is None
    assert farm.environment(Settings(home=home)) == shown["environment"]
    bring_up(home)


@pytest.fixture
def farm_of(home: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        environment = {**os.environ, "HUAFANG_HOME": str(home)}
        command = [sys.executable, "-m", "embedded", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=240).stdout

    return run


def test_a_farm_that_cannot_start_says_why_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="huafang up"):
        farm.environment(Settings(home=tmp_path))
    with pytest.raises(Invalid, match=r"192\.0\.2\.1"):
        bring_up(tmp_path / "elsewhere", listen="192.0.2.1")
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="HUAFANG_HOME"):
        bring_up(tmp_path / "file" / "home")
    monkeypatch.setattr(instance, "MIN_FREE_MB", 1 << 40)
    with pytest.raises(Unavailable, match="MB are free"):
        bring_up(tmp_path / "full")


def test_a_client_that_cannot_start_takes_the_farm_down_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm, "FAILING_S", 1)
    with pytest.raises(Unavailable, match=r"see .*/logs/api\.log"):
        farm.up(Settings(home=tmp_path), clients=[Program("api", ("false",))])
    check_nothing_runs(tmp_path)
    assert farm.status(Settings(home=tmp_path)) is None


def test_a_server_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    with Servers(tmp_path):
        pass
    (tmp_path / "s3" / "swift.conf").write_text("damaged")
    with pytest.raises(Unavailable, match=r"s3 did not start; see .*/logs/s3\.log"), Servers(tmp_path):
        pass
    check_nothing_runs(tmp_path)


def test_a_reused_process_id_does_not_keep_postgres_from_starting(tmp_path: Path) -> None:
    with Servers(tmp_path) as started:
        lock = tmp_path / "postgres" / "postmaster.pid"
        postgres, another = (str(started.children[name].pid) for name in ("postgres", "valkey"))
        stale = lock.read_text().replace(postgres, another)
        started.kill("postgres")
        lock.write_text(stale)
        started.start("postgres")


def test_a_taken_port_is_replaced_and_the_others_are_kept() -> None:
    known = choose_ports("127.0.0.1", {})
    with socket.socket() as other:
        other.bind(("127.0.0.1", known["valkey"]))
        other.listen()
        chosen = choose_ports("127.0.0.1", known)
    assert chosen.pop("valkey") != known.pop("valkey")
    assert chosen == known


def test_a_folder_with_foreign_files_keeps_its_mode(tmp_path: Path) -> None:
    shared, empty = tmp_path / "shared", tmp_path / "empty"
    for folder in (shared, empty):
        folder.mkdir()
        folder.chmod(0o755)
    (shared / "notes.txt").touch()
    for folder, mode in (
        (shared, 0o755),
        (empty, 0o700),
        (shared, 0o755),
    ):  # twice: a farm that is there changes nothing
        prepare_instance(folder)
        assert folder.stat().st_mode & 0o777 == mode
        assert {(folder / name).stat().st_mode & 0o777 for name in ("run", "logs")} == {0o700}
        assert (folder / "farm.json").stat().st_mode & 0o777 == 0o600


def test_a_socket_is_not_made_in_a_folder_that_others_may_write(tmp_path: Path) -> None:
    """The socket of a deep home is in /tmp, where anyone may make a folder of its name first."""
    deep = tmp_path / ("deep" * 30)
    folder = supervisor.socket_path(deep).parent
    try:
        assert supervisor.socket_path(deep).parent == folder
        folder.chmod(0o770)
        with pytest.raises(Error, match="belongs to another user"):
            supervisor.socket_path(deep)
        folder.rmdir()
        folder.symlink_to(tmp_path)
        with pytest.raises(Error, match="belongs to another user"):
            supervisor.socket_path(deep)
    finally:
        folder.unlink() if folder.is_symlink() else folder.rmdir()


def test_servers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from embedded.servers import Servers
with Servers(Path({str(tmp_path)!r})):
    print("up", flush=True)
    time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout.readline() == "up\n"
        assert len(open_ports(instance_of(tmp_path))) == 3
        starter.kill()
    assert wait_until(lambda: not processes_of(tmp_path), 60)
    assert open_ports(instance_of(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as nobody")
def test_postgres_runs_as_nobody_where_user_namespaces_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = prepare_instance(tmp_path)
    servers.postgres(at, durable=False)  # the data belong to root, as where user namespaces work
    monkeypatch.setattr(servers, "unprivileged", users.as_nobody)
    with Servers(tmp_path) as started:
        assert psutil.Process(started.children["postgres"].pid).uids().effective == users.NOBODY


USER = 12345  # has no entry in /etc/passwd
AS_USER = """
import os, sys
from pathlib import Path
from common.config import Settings
from embedded.servers import Servers
started = Servers(Path(sys.argv[1]))
started.start("postgres")
print(os.geteuid(), Settings().home)
started.stop()
"""


def as_user(folder: str, *command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python as a user without a name and a home. The folder becomes the user's."""
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    become += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]  # Python's folder may be root's alone
    of_user = {name: value for name, value in os.environ.items() if name != "HOME"} | environment
    os.chown(folder, USER, USER)
    return subprocess.run(
        [*become, sys.executable, *command], env=of_user, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    not all(folder.stat().st_mode & 0o001 for folder in servers.postgres_bin().parents),
    reason="the folder of Postgres is closed to other users",
)
def test_postgres_runs_for_a_user_without_a_name_and_a_home() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's is closed to other users
        done = as_user(folder, "-c", AS_USER, f"{folder}/home")
        assert (done.returncode, done.stdout) == (0, f"{USER} /.local/share/huafang\n"), done.stderr
        assert Path(folder, "home", "postgres").stat().st_uid == USER


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_reads_what_helps_where_user_namespaces_are_closed() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        refuses = Path(folder, "unshare")
        refuses.write_text("#!/bin/sh\nexit 1\n")
        refuses.chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        done = as_user(folder, "-m", "embedded", "up", PATH=path, HUAFANG_HOME=f"{folder}/home")
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    _, why = done.stderr.splitlines()  # behind the progress
    assert f"user {USER} has no entry in /etc/passwd" in why
    assert "add one, or start the farm as another user" in why


def test_a_hard_limit_that_is_too_low_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", sys.executable, "-m", "embedded", "up"],
        env={**os.environ, "HUAFANG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
    assert "At most 256 open files (ulimit -n) are allowed here, and the farm needs 1024" in done.stderr
    assert not (tmp_path / "postgres").exists()


def test_a_soft_limit_that_is_too_low_is_raised(tmp_path: Path) -> None:
    """As a shell of macOS has it: 256, which whoever needs more may raise."""
    home = tmp_path / "farm"
    code = "from common.config import Settings; from embedded import farm; farm.up(Settings(), clients=CLIENTS)"
    code = f"from tests.integration.farm.test_embedded import CLIENTS; {code}"
    subprocess.run(
        ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", sys.executable, "-c", code],
        env={**os.environ, "HUAFANG_HOME": str(home)},
        timeout=240,
        check=True,
    )
    assert farm.status(Settings(home=home))
    farm.down(Settings(home=home))


NO_LOG = r"not become ready; see .*/logs/supervisord\.log"  # the API has none here
SLOW = """
import time
end = time.process_time() + 2.5
while time.process_time() < end:
    pass
"""
FOR_EVER = SLOW.replace("2.5", "1000")
NEVER_READY = f"""
import threading
threading.Thread(target=exec, args=({FOR_EVER!r},), daemon=True).start()
""" + API.replace("200 if", "503 if")


def wait_for_api_of(home: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Start this program as the API of a farm, and wait until it is ready."""
    monkeypatch.setattr(farm, "READY_TIMEOUT_S", 2)
    monkeypatch.setattr(farm, "FAILING_S", 100)  # there is no supervisor to ask
    monkeypatch.setattr(processes, "CPU_STEP_S", 0.05)
    at = prepare_instance(home)
    processes.write_programs(home, [Program("api", (sys.executable, "-c", code))])
    with subprocess.Popen(processes.locked_command("api"), cwd=home) as child:
        try:
            assert wait_until(lambda: is_alive(home, "api"), 60)
            farm.wait_for_api(at)
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        pytest.param(SLOW + API, nullcontext(), id="slow"),
        pytest.param("import time; time.sleep(1000)", pytest.raises(Unavailable, match=NO_LOG), id="hangs"),
    ],
)
def test_the_api_may_take_long_to_start_while_it_uses_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, outcome: AbstractContextManager[object]
) -> None:
    with outcome:
        wait_for_api_of(tmp_path, monkeypatch, code)


@pytest.mark.parametrize(
    ("code", "most_s"), [pytest.param(NEVER_READY, 60, id="never ready"), pytest.param(FOR_EVER, 4, id="no answer")]
)
def test_an_api_that_uses_the_cpu_for_ever_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, most_s: float
) -> None:
    """One that answers has started, whatever it works on then."""
    monkeypatch.setattr(processes, "MOST_START_S", most_s)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=NO_LOG):
        wait_for_api_of(tmp_path, monkeypatch, code)
    assert time.monotonic() - began < 40


def test_the_default_model_is_the_one_for_this_kind_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, here = tmp_path / "nvidiactl", Instance(tmp_path)
    monkeypatch.setattr(farm, "NVIDIA_DEVICE", driver)
    assert farm.default_model(here, Settings()) == "mini-zh"
    assert farm.default_model(replace(here, device="cuda:1"), Settings()) == "zh-v0"
    driver.touch()
    assert farm.default_model(here, Settings()) == "zh-v0"
    assert farm.default_model(replace(here, device="stub"), Settings()) == "mini-zh"
    assert farm.default_model(here, Settings(default_model="other")) == "other"
