"""The local farm of `embedded`: what comes up, what survives which kill, and that nothing is left when it is down.

The API and the workers are stood in for by programs of a few lines: only their starting and stopping matters here.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
from common.errors import Conflict, Invalid, NotFound, Unavailable
from embedded import farm, instance, servers
from embedded.farm import Farm
from embedded.instance import Site, choose_ports, find_site, prepare_site
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
    Program(
        "worker-1", ("sh", "-c", "trap '' TERM; while :; do sleep 1; done"), stop_s=1
    ),  # hears only the last signal
)


def bring_up(home: Path, listen: str | None = None) -> Farm:
    return farm.up(Settings(home=home), listen=listen, clients=CLIENTS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A farm that is up, in a folder with an inconvenient name. Whoever breaks it brings it up again."""
    home = tmp_path_factory.mktemp("farm") / "a;b #%(c)s 画坊"
    bring_up(home)
    yield home
    farm.down(Settings(home=home))


def site_of(home: Path) -> Site:
    found = find_site(home)
    assert found
    return found


def pids(found: Farm | None) -> dict[str, int | None]:
    assert found
    return {process.name: process.pid for process in found.processes}


def of_home(home: Path) -> list[psutil.Process]:
    """Every process that works in that home or below."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def open_ports(site: Site) -> list[str]:
    def is_open(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((site.host, port)) == 0

    return [service for service, port in site.ports.items() if is_open(port)]


def write(home: Path) -> None:
    at = site_of(home)
    with psycopg.connect(at.database_url(at.host)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('画')")
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"]) as client:
        client.set("kept", "画")
    s3_client(at).put_object(Bucket="huafang", Key="画.png", Body="画".encode())


def check_written(home: Path) -> None:
    at = site_of(home)
    with psycopg.connect(at.database_url(at.host)) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("画",)
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"]) as client:
        assert client.get("kept") == "画".encode()
    assert s3_client(at).get_object(Bucket="huafang", Key="画.png")["Body"].read() == "画".encode()


def check_nothing_left(home: Path) -> None:
    assert of_home(home) == []
    assert open_ports(site_of(home)) == []


def test_a_killed_process_comes_back_with_what_it_kept(home: Path) -> None:
    write(home)
    for name, pid in pids(farm.status(Settings(home=home))).items():
        os.kill(pid, signal.SIGKILL)
        assert wait_until(partial(came_back, home, name, pid), 20), name
    for name in servers.ANSWERS:
        wait_for_server(site_of(home), name, lambda: False)
    check_written(home)


def test_a_farm_loses_nothing_that_it_has_confirmed(home: Path) -> None:
    """A killed process shows none of it: only a machine that loses power does."""
    at = site_of(home)
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with psycopg.connect(at.database_url(at.host)) as connection:
        shown = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(wanted)])
        assert dict(shown.fetchall()) == wanted
    with redis.Redis(at.host, at.ports["valkey"], password=at.secrets["valkey"], decode_responses=True) as client:
        known = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")}
    assert known.pop("appendfsync") in ("everysec", "always")
    assert known == {"appendonly": "yes", "maxmemory-policy": "noeviction"}


def came_back(home: Path, name: str, old: int) -> bool:
    return pids(farm.status(Settings(home=home)))[name] not in (None, old)


def test_a_second_up_finds_the_first(home: Path) -> None:
    first = farm.status(Settings(home=home))
    found = bring_up(home)
    assert pids(found) == pids(first)
    assert found.url == first.url
    with pytest.raises(Conflict, match="down"):
        bring_up(home, listen="127.0.0.2")


def test_a_killed_supervisor_leaves_nothing_that_up_or_down_cannot_clear(home: Path) -> None:
    write(home)
    before = pids(farm.status(Settings(home=home)))
    kill_supervisor(home)
    assert farm.status(Settings(home=home)) is None
    found = bring_up(home)
    assert set(pids(found).values()).isdisjoint(before.values())
    check_written(home)

    kill_supervisor(home)
    farm.down(Settings(home=home))
    check_nothing_left(home)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(bring_up, [home, home])
    assert pids(one) == pids(other)
    check_written(home)


def kill_supervisor(home: Path) -> None:
    os.kill(int(lock_file(home, "supervisord").read_text()), signal.SIGKILL)
    assert wait_until(lambda: not is_alive(home, "supervisord"), 10)


def test_two_homes_live_side_by_side_one_of_them_deep_and_open_to_other_machines(home: Path, tmp_path: Path) -> None:
    second = tmp_path / ("deep" * 30)
    first = pids(farm.status(Settings(home=home)))
    found = bring_up(second, listen="0.0.0.0")
    assert set(pids(found).values()).isdisjoint(first.values())
    at = site_of(second)
    assert set(at.ports.values()).isdisjoint(site_of(home).ports.values())
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
    check_nothing_left(second)
    assert pids(farm.status(Settings(home=home))) == first


def test_secrets_are_closed_to_others_and_in_no_command_line(home: Path) -> None:
    secrets = site_of(home).secrets.values()
    assert home.stat().st_mode & 0o777 == 0o700
    open_files = [path for path in home.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    with_secrets = [path for path in open_files if any(secret in path.read_text(errors="ignore") for secret in secrets)]
    assert with_secrets == []
    for process in of_home(home):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)


def test_nobody_comes_in_without_the_password(home: Path) -> None:
    at = site_of(home)
    wrong = Site(home, ports=at.ports, secrets=dict.fromkeys(at.secrets, "wrong"))
    for name, complaint in (
        ("postgres", psycopg.OperationalError),
        ("valkey", redis.AuthenticationError),
        ("s3", ClientError),
    ):
        with pytest.raises(complaint):
            servers.ANSWERS[name](wrong)
    swift = psutil.Process(pids(farm.status(Settings(home=home)))["s3"])
    backs = [c.laddr.port for c in swift.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    backs.remove(at.ports["s3"])
    assert len(backs) == 3
    for port in backs:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.request("GET", "/recon/version")
            assert connection.getresponse().status == 403


def test_status_is_json_for_programs_and_down_ends_everything(home: Path, farm_of: Callable[..., str]) -> None:
    shown = json.loads(farm_of("status", "--json"))
    at = site_of(home)
    assert shown["url"] == f"http://127.0.0.1:{at.ports['api']}"
    assert shown["environment"] == farm.environment(Settings(home=home))
    assert {process["name"] for process in shown["processes"]} == {*servers.ANSWERS, "api", "control", "worker-1"}
    assert shown["join"] == []

    assert json.loads(farm_of("down", "--json")) is None
    check_nothing_left(home)
    assert json.loads(farm_of("status", "--json")) is None
    assert farm.environment(Settings(home=home)) == shown["environment"]
    bring_up(home)


@pytest.fixture
def farm_of(home: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        environment = {**os.environ, "HUAFANG_HOME": str(home)}
        command = [sys.executable, "-m", "embedded", *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    return run


def test_what_cannot_start_says_why_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="huafang up"):
        farm.environment(Settings(home=tmp_path))
    with pytest.raises(Invalid, match=r"192\.0\.2\.1"):
        bring_up(tmp_path / "elsewhere", listen="192.0.2.1")
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="HUAFANG_HOME"):
        bring_up(tmp_path / "file" / "home")
    monkeypatch.setattr(instance, "LEAST_FREE_MB", 1 << 40)
    with pytest.raises(Unavailable, match="MB are free"):
        bring_up(tmp_path / "full")


def test_a_client_that_cannot_start_takes_the_farm_down_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(farm, "PATIENCE_S", 1)
    with pytest.raises(Unavailable, match=r"see .*/logs/api\.log"):
        farm.up(Settings(home=tmp_path), clients=[Program("api", ("false",))])
    check_nothing_left(tmp_path)
    assert farm.status(Settings(home=tmp_path)) is None


def test_a_server_that_cannot_start_names_its_log(tmp_path: Path) -> None:
    with Servers(tmp_path):
        pass
    (tmp_path / "s3" / "swift.conf").write_text("damaged")
    with pytest.raises(Unavailable, match=r"s3 did not start; see .*/logs/s3\.log"), Servers(tmp_path):
        pass
    check_nothing_left(tmp_path)


def test_a_number_used_again_does_not_keep_postgres_from_starting(tmp_path: Path) -> None:
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
        assert len(open_ports(site_of(tmp_path))) == 3
        starter.kill()
    assert wait_until(lambda: not of_home(tmp_path), 20)
    assert open_ports(site_of(tmp_path)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become nobody")
def test_postgres_runs_as_nobody_where_user_namespaces_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = prepare_site(tmp_path)
    servers.postgres(at, durable=False)  # the data of a machine that had namespaces
    monkeypatch.setattr(servers, "ordinary_user", servers.nobody)
    with Servers(tmp_path) as started:
        assert psutil.Process(started.children["postgres"].pid).uids().effective == servers.NOBODY


def test_the_default_model_is_the_one_for_this_kind_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, here = tmp_path / "nvidiactl", Site(tmp_path)
    monkeypatch.setattr(farm, "NVIDIA", driver)
    assert farm.default_model(here, Settings()) == "mini-zh"
    assert farm.default_model(replace(here, device="cuda:1"), Settings()) == "zh-v0"
    driver.touch()
    assert farm.default_model(here, Settings()) == "zh-v0"
    assert farm.default_model(replace(here, device="stub"), Settings()) == "mini-zh"
    assert farm.default_model(here, Settings(default_model="other")) == "other"
