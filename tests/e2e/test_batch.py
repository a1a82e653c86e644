"""A batch from the command line to the last picture: a real API, a control worker and a render worker."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from common.config import Settings
from embedded.farm import variables
from tests.support.command_line import HUAFANG, CommandLine, Result, run_process
from tests.support.serving import Api, serving
from tests.support.workers import QUICK, bucket_of, log_of, running, until

Call = Callable[..., Result]

PROMPTS = [(f"{colour}色的{shape}", steps) for steps, colour in enumerate("红绿蓝", 3) for shape in ("圆形", "星形")]
STEP = "stub:0.3"  # seconds, slow enough to pause a batch while it renders


@pytest.fixture
def api(settings: Settings, database: Engine) -> Iterator[Api]:
    with serving(settings, database) as api:
        yield api


@pytest.fixture
def client(api: Api) -> Iterator[httpx.Client]:
    with api.client() as client:
        yield client


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def environment(api: Api, client: httpx.Client, tmp_path: Path) -> dict[str, str]:
    """The variables of the command line for this farm."""
    key = client.headers["Authorization"].removeprefix("Bearer ")
    return {"HUAFANG_URL": api.url, "HUAFANG_KEY": key, "HUAFANG_HOME": str(tmp_path), "PATH": os.environ["PATH"]}


@pytest.fixture
def call(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Call]:
    with monkeypatch.context() as here:
        for name, value in environment.items():
            here.setenv(name, value)
        yield lambda *given: CommandLine(capsys)(*given, "--format=json")


def test_a_batch_is_paused_resumed_and_stored(
    call: Call, client: httpx.Client, environment: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"  # no pipeline call renders two of its colours
    file.write_text("\n".join(json.dumps({"prompt": prompt, "steps": steps}) for prompt, steps in PROMPTS))

    def shown() -> Any:
        return client.get(f"/v1/batches/{batch_id}").json()

    with running(tmp_path, settings, "control", **QUICK), running(tmp_path, settings, "render", DEVICE=STEP, **QUICK):
        made = call("batch", "submit", str(file), "--images-per-prompt=4", "--seed=7", "--size=64x64", "--name=first")
        assert made.code == 0, made.err
        batch_id = made.json["id"]
        until(lambda: shown()["running"])
        assert call("batch", "pause", batch_id).json["state"] == "paused"
        until(lambda: not shown()["running"])
        paused = shown()["images"]
        assert paused["open"] > 0
        assert call("batch", "watch", batch_id, "--timeout=0.5").code == 7
        assert shown()["images"] == paused

        watch = subprocess.Popen(
            [*HUAFANG, "batch", "watch", batch_id], env=environment, stderr=subprocess.PIPE, text=True
        )
        assert "paused" in watch.stderr.readline()
        watch.send_signal(signal.SIGINT)
        printed = watch.stderr.read()
        assert watch.wait(120) == 130
        assert f"batch watch {batch_id}" in printed

        assert call("batch", "resume", batch_id).code == 0
        ended = call("batch", "watch", batch_id)
    last = json.loads(ended.out.splitlines()[-1])
    assert (ended.code, last["images"]["stored"], last["state"]) == (0, 24, "ended"), ended.err
    assert [row["name"] for row in call("batch", "ls").json] == ["first"]
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"]
    assert [(job["recipe"]["prompt"], job["recipe"]["steps"]) for job in jobs] == PROMPTS[::-1]
    assert [seed for job in jobs[::-1] for seed in job["recipe"]["seeds"]] == list(range(7, 31))
    pictures = {key: data for key, data in bucket_of(settings).items() if key.startswith("images/")}
    hashes = [image["sha256"] for job in jobs for image in job["images"]]
    assert sorted(hashes) == sorted(hashlib.sha256(data).hexdigest() for data in pictures.values())
    assert len(set(hashes)) == 24


@contextmanager
def api_process(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An API that can be killed."""
    command = [sys.executable, "-m", "api", f"--port={port}"]
    with subprocess.Popen(command, env={"PATH": "", **variables(settings)}, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_watch_survives_a_restart_of_the_api_and_failed_images_are_retried(
    environment: dict[str, str], settings: Settings, tmp_path: Path, unused_port: int
) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([*(f"红色的圆形 {n}" for n in range(40)), "心形 #nan"]))
    environment |= {"HUAFANG_URL": f"http://127.0.0.1:{unused_port}"}

    def huafang(*given: str) -> Result:
        return run_process("--format=json", "batch", *given, environment=environment)

    with running(tmp_path, settings, "control", **QUICK), running(tmp_path, settings, "render", DEVICE=STEP, **QUICK):
        with api_process(settings, unused_port):
            until(lambda: huafang("ls").code == 0)
            options = ("--size=64x64", "--steps=2", "--stop-at=50%/20")
            batch_id = huafang("submit", str(tmp_path / "prompts.txt"), *options).json["id"]
            watch = subprocess.Popen(
                [*HUAFANG, "--format=json", "batch", "watch", batch_id],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert batch_id in watch.stderr.readline()
        until(lambda: "The farm does not answer" in watch.stderr.readline())
        with api_process(settings, unused_port):
            out, err = watch.communicate(timeout=240)
            assert (watch.returncode, "1 failed" in err) == (6, True), err
            assert "The farm answers again." in err
            again = huafang("retry-failed", batch_id, "--watch")
            assert huafang("retry-failed", batch_id).code == 5
            assert huafang("retry-failed", again.json["id"]).code == 0
    last = json.loads(out.splitlines()[-1])
    assert (last["state"], last["images"]["stored"], last["images"]["failed"]) == ("ended", 40, 1)
    assert again.code == 1, again.err
    assert (again.json["state"], again.json["parent_id"], again.json["images"]["failed"]) == ("ended", batch_id, 1)


def test_a_second_control_worker_finishes_the_expansion_of_a_killed_one(
    call: Call, client: httpx.Client, database: Engine, settings: Settings, tmp_path: Path
) -> None:
    """Killed in its third transaction, which waits for the lane of the last prompt: the test holds its lock."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"红色的圆形 {n}"} for n in range(250)] + [{"prompt": "红色的圆形", "steps": 3}]
    file.write_text("\n".join(map(json.dumps, lines)))
    made = call("batch", "submit", str(file), "--images-per-prompt=64", "--seed=0", "--steps=2").json

    def expanded() -> int:
        return int(client.get(f"/v1/batches/{made['id']}").json()["jobs"])

    with running(tmp_path, settings, "control", **QUICK) as first, database.connect() as held:
        held.execute(HOLD_LANE, {"batch": made["id"]})
        until(lambda: expanded() == 250)
        until(lambda: held.execute(IS_BLOCKING).scalar())
        first.kill()
        first.wait(60)
        held.rollback()
    assert expanded() == 250
    with database.begin() as connection:
        connection.execute(text("UPDATE batches SET touched_at = now() - interval '1 minute'"))
    with running(tmp_path, settings, "control", **QUICK) as second:
        until(lambda: expanded() == 251)
        until(lambda: "batch_expanded" in log_of(second))
    found = client.get(f"/v1/batches/{made['id']}").json()
    assert (found["state"], found["images"]["open"]) == ("running", 251 * 64)
    with database.connect() as connection:
        places, images, seeds = connection.execute(ALL_OF_IT).one()
    assert (places, images, seeds) == (251, 251 * 64, 251 * 64)


HOLD_LANE = text("""
    INSERT INTO lanes (tenant_id, tier, model, compatibility, batch_id, open)
    SELECT tenant_id, tier, 'mini-zh', 'mini-zh text2image 128x128 3×ddim g2.0', id, 0 FROM batches WHERE id = :batch
""")
IS_BLOCKING = text("SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")
ALL_OF_IT = text("""
    SELECT (SELECT count(DISTINCT position) FROM jobs), (SELECT count(*) FROM images),
           (SELECT count(DISTINCT seed) FROM jobs, jsonb_array_elements(recipe -> 'seeds') AS seed)
""")
