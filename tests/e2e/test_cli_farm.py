"""The command line and the examples against a real local farm, with a stub worker."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command_line import HUAFANG, CommandLine, Result, run_process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# What a desktop sets for a proxy that is not there, or that HTTP clients refuse: it must not matter on one machine.
PROXIES = {
    "all_proxy": "socks5://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "127.0.0.1:9",
    "no_proxy": "localhost,[::1],fe80::/10",
}

Call = Callable[..., Result]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A farm that is up, and the variables of its home."""
    home = tmp_path_factory.mktemp("home")
    environment = {"HUAFANG_HOME": str(home), "HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment["HUAFANG_MODELS"] = "mini-zh"  # so that a job of zh-v0 waits
    environment |= PROXIES
    done = run_process("up", "--device", "stub", environment=environment)
    assert done.code == 0, done.err
    yield environment
    assert run_process("down", environment=environment).code == 0


@pytest.fixture
def call(
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """Run HTTP commands in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, **variables: str) -> Result:
        with monkeypatch.context() as here:
            for name, value in (environment | variables).items():
                here.setenv(name, value)
            return CommandLine(capsys)(*arguments)

    return call


def test_a_second_up_finds_the_first(environment: dict[str, str]) -> None:
    before = run_process("status", "--format=json", environment=environment).json
    again = run_process("up", "--format=json", environment=environment)
    after = again.json
    assert after["url"] == before["url"]
    assert {p["name"]: p["pid"] for p in after["processes"]} == {p["name"]: p["pid"] for p in before["processes"]}
    assert {p["name"] for p in after["processes"]} >= {"postgres", "valkey", "s3", "api", "control", "worker-1"}
    assert "PEPPER" not in again.out


def test_up_creates_a_lost_key_again(call: Call, environment: dict[str, str]) -> None:
    key = Path(environment["HUAFANG_HOME"]) / "admin-key"
    key.write_text("huaf_of_another_farm\n")
    assert call("models", "ls").code == 3
    assert run_process("up", environment=environment).code == 0
    assert call("models", "ls").code == 0
    assert key.stat().st_mode & 0o777 == 0o600


def test_generate(call: Call, tmp_path: Path) -> None:
    done = call("generate", "红色的圆形", "--count=2", "--seed=7", "--size=64x128", "--steps=3", "--format=json")
    assert done.code == 0, done.err
    job = done.json
    assert (job["recipe"]["width"], job["recipe"]["height"], job["recipe"]["seeds"]) == (64, 128, [7, 8])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == sorted(
        image["path"] for image in job["images"]
    )
    shown = call("jobs", "show", job["id"], "--format=json").json
    assert [image["sha256"] for image in shown["images"]] == [image["sha256"] for image in job["images"]]


def test_generate_prints_warnings_and_refusals(call: Call) -> None:
    warned = call("generate", "小狗", "--steps=1", "--format=human")
    assert warned.code == 0
    assert "mini-zh is a toy" in warned.err
    refused = call("generate", "红色的圆形", "--steps=0")
    assert (refused.code, refused.out) == (2, "")
    assert "steps" in refused.err
    assert call("generate", "红色的圆形", "--model=nowhere").code == 2


def test_a_dry_run_makes_no_job(call: Call) -> None:
    before = len(call("jobs", "ls", "--format=json").json)
    done = call("generate", "红色的圆形", "--dry-run", "--format=json")
    assert done.json["recipe"]["steps"] == 20
    assert len(call("jobs", "ls", "--format=json").json) == before


def test_jobs(call: Call) -> None:
    job = call("generate", "绿色的三角形", "--steps=1", "--format=json").json
    assert call("jobs", "ls", "--limit=1", "--format=quiet").out.split() == [job["id"]]
    assert job["id"] in call("jobs", "ls", "--state=succeeded", "--format=human").out
    assert "绿色的三角形" in call("jobs", "show", job["id"], "--format=human").out
    again = call("jobs", "retry", job["id"], "--format=json").json[0]
    assert again["parent_id"] == job["id"]
    assert call("jobs", "watch", again["id"], "--format=json").json["state"] == "succeeded"
    assert call("jobs", "cancel", again["id"], "--format=json").json[0]["state"] == "succeeded"
    assert call("jobs", "show", "019aa000-0000-7000-8000-000000000000").code == 4


def test_a_licence_is_accepted_before_the_first_job(call: Call) -> None:
    refused = call("generate", "女孩", "--model=zh-v0")
    assert (refused.code, "`huafang models accept zh-v0`" in refused.err) == (3, True)
    assert "to be accepted" in call("models", "ls", "--format=human").out
    assert call("models", "accept", "zh-v0", "--yes", "--format=quiet").out == "zh-v0\n"


def test_an_interrupted_wait_prints_how_to_resume(call: Call, environment: dict[str, str], tmp_path: Path) -> None:
    assert call("models", "accept", "zh-v0", "--yes").code == 0
    child = subprocess.Popen(
        [*HUAFANG, "generate", "女孩", "--model=zh-v0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert child.stderr
    line = child.stderr.readline()
    assert "queued: No worker" in line
    child.send_signal(signal.SIGINT)
    printed = child.stderr.read()
    assert child.wait(120) == 130
    job_id = line.split()[0]
    assert f"jobs watch {job_id}" in printed
    assert "Traceback" not in printed

    assert call("jobs", "watch", job_id, "--timeout=0.2").code == 7
    assert call("jobs", "cancel", job_id, "--format=json").json[0]["state"] == "cancelled"
    assert call("jobs", "watch", job_id).code == 1


def test_workers_drain_and_resume(call: Call) -> None:
    def states() -> dict[str, str]:
        return {each["id"]: each["state"] for each in call("workers", "ls", "--format=json").json}

    ((worker, state),) = states().items()
    assert state == "ready"
    shown = call("workers", "ls", "--format=human").out
    assert worker in shown
    assert "mini-zh resident" in shown
    assert call("workers", "drain", "worker-1").code == 0
    assert states() == {worker: "draining"}
    assert call("doctor", "--format=human").code == 1
    assert call("workers", "resume", worker).code == 0
    assert states() == {worker: "ready"}
    assert call("workers", "drain", "019aa000-0000-7000-8000-000000000000").code == 4


def test_doctor_passes_on_a_healthy_farm(call: Call) -> None:
    done = call("doctor", "--render", "--format=json")
    assert done.code == 0, done.out
    found = {finding["about"]: finding["verdict"] for finding in done.json}
    for name in ("disk", "mini-zh", "postgres", "valkey", "s3", "api", "control", "farm", "key", "worker", "render"):
        assert found[name] == "ok", name


def test_models(call: Call) -> None:
    assert {"zh-v0", "taiyi", "mini-zh"} <= set(call("models", "ls", "--format=quiet").out.split())
    assert "CreativeML OpenRAIL-M" in call("models", "ls", "--format=human").out


def test_keys(call: Call) -> None:
    made = call("keys", "create", "--name=reader", "--scope=jobs:read", "--format=json").json
    assert call("jobs", "ls", HUAFANG_KEY=made["secret"]).code == 0
    assert call("generate", "红色的圆形", HUAFANG_KEY=made["secret"]).code == 3
    assert call("keys", "ls", HUAFANG_KEY=made["secret"]).code == 3
    assert made["secret"] not in call("keys", "ls", "--format=human").out
    assert call("keys", "revoke", made["id"]).code == 0
    assert call("jobs", "ls", HUAFANG_KEY=made["secret"]).code == 3


def test_bootstrap_prints_one_key_once(call: Call, environment: dict[str, str]) -> None:
    status = subprocess.run(
        [sys.executable, "-P", "-m", "embedded", "status", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    variables = json.loads(status.stdout)["environment"]
    refused = run_process("admin", "bootstrap", environment=variables)
    assert (refused.code, refused.out) == (5, "")
    another = run_process("admin", "bootstrap", "--another", environment=variables).json
    assert call("keys", "ls", HUAFANG_KEY=another["secret"]).code == 0
    assert run_process("admin", "migrate", environment=variables).code == 0
    without = run_process("admin", "bootstrap", environment=variables | {"HUAFANG_KEY_PEPPER": ""})
    assert without.code == 1
    assert "HUAFANG_KEY_PEPPER" in without.err


def test_the_local_farm_is_pruned_without_naming_its_database(environment: dict[str, str]) -> None:
    counted = run_process("admin", "prune", "--dry-run", environment=environment)
    assert counted.code == 0, counted.err
    assert counted.json["leases"] == 0


def test_migrating_without_a_database_is_one_sentence() -> None:
    nowhere = {"HUAFANG_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    done = run_process("admin", "migrate", "--wait=0", environment=nowhere)
    assert done.code == 1
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(["sh", EXAMPLES / "submit.sh"], marks=pytest.mark.needs("curl"), id="submit.sh"),
        pytest.param([sys.executable, EXAMPLES / "submit.py"], id="submit.py"),
    ],
)
def test_examples(call: Call, environment: dict[str, str], tmp_path: Path, example: list) -> None:
    """As examples/README.md says to run them."""
    url = call("status", "--format=quiet").out.strip()
    key = call("keys", "create", "--name=examples", "--format=quiet").out.strip()
    done = subprocess.run(
        [*example, "蓝色的星形"],
        env={name: value for name, value in environment.items() if name not in PROXIES}
        | {"HUAFANG_URL": url, "HUAFANG_KEY": key, "NO_PROXY": "127.0.0.1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).read_bytes().startswith(b"\x89PNG")
