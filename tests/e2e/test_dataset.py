"""A dataset from the shell to a verified folder: a real API, control workers that are killed, and a render worker."""

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, text

from common.config import Settings
from tests.command_line import CommandLine, Done
from tests.serving import serving
from tests.workers import QUICK, running, until

Call = Callable[..., Done]

PROMPTS = [f"红色的圆形，第{n}幅" for n in range(60)] + ["星形 #flagged", "心形 #nan"]


@pytest.fixture
def client(settings: Settings, database: Engine) -> Iterator[httpx.Client]:
    with serving(settings, database) as api, api.client() as client:
        yield client


@pytest.fixture
def call(
    client: httpx.Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Call]:
    key = client.headers["Authorization"].removeprefix("Bearer ")
    found = {"HUAFANG_URL": str(client.base_url), "HUAFANG_KEY": key, "HUAFANG_HOME": str(tmp_path)}
    with monkeypatch.context() as here:
        for name, value in (found | {"PATH": os.environ["PATH"]}).items():
            here.setenv(name, value)
        yield lambda *given: CommandLine(capsys)(*given, "--format=json")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_is_exported_brought_here_and_verified(
    call: Call, client: httpx.Client, database: Engine, settings: Settings, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "dataset"
    prompts.write_text("\n".join(PROMPTS))
    export = ("dataset", "export")

    with running(tmp_path, settings, "render", **QUICK), running(tmp_path, settings, "control", **QUICK):
        batch = call("batch", "submit", str(prompts), "--images-per-prompt=4", "--size=64x64", "--steps=1", "--watch")
        assert batch.code == 6, batch.err  # some are flagged, some failed
        batch_id = batch.json["id"]
        whole = call(*export, batch_id, "--split=test=0.2", f"--out={out}")
        assert whole.code == 0, whole.err
    assert whole.json["state"] == "ready"
    verified = call("dataset", "verify", str(out))
    assert (verified.code, verified.json["rows"], verified.json["pictures"]) == (0, 248, 240), verified.err

    # Killed at random, and again, and a third time: the same bytes.
    dice = random.Random()
    made = client.post("/v1/datasets", json={"batch": batch_id, "splits": {"test": 0.2}}).json()["id"]

    def shown() -> dict[str, object]:
        return client.get(f"/v1/datasets/{made}").json()

    for _ in range(3):
        with running(tmp_path, settings, "control", **QUICK) as control:
            until(lambda: shown()["state"] != "waiting")
            time.sleep(dice.random() / 2)
            control.kill()
            control.wait(10)
        with database.begin() as connection:
            connection.execute(text("UPDATE datasets SET touched_at = now() - interval '1 minute'"))
    with running(tmp_path, settings, "control", **QUICK):
        until(lambda: shown()["state"] == "ready")
        again = call(*export, batch_id, "--split=test=0.2", f"--out={tmp_path / 'again'}")
        assert (again.code, again.json["id"]) == (0, made), again.err
        assert files_of(tmp_path / "again") == files_of(out)
        assert call("dataset", "verify", made).json["pictures"] == 240

        # What is wrong is found, and put right by saying the same again.
        tar, table = out / "data/train-00000.tar", out / "metadata/test-00000.parquet"
        good = files_of(out)
        flipped = bytearray(tar.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        tar.write_bytes(flipped)
        table.unlink()
        (out / "data/stranger.tar").write_bytes(b"x")
        wrong = call("dataset", "verify", str(out))
        assert wrong.code == 1
        assert "data/train-00000.tar: its sha256 is not the one in SHA256SUMS." in wrong.err
        assert "metadata/test-00000.parquet: it is missing." in wrong.err
        assert "data/stranger.tar: it does not belong to the dataset." in wrong.err
        (out / "data/stranger.tar").unlink()
        tar.unlink()
        tar.with_name("train-00000.tar.part").write_bytes(good["data/train-00000.tar"][:100_000])  # broke off there
        assert call(*export, batch_id, "--split=test=0.2", f"--out={out}").code == 0
        assert files_of(out) == good

        # Another plan is refused, until it is said to replace the one that is there.
        refused = call(*export, batch_id, "--layout=parquet", f"--out={out}")
        assert refused.code == 5
        assert "holds another dataset" in refused.err
        assert files_of(out) == good
        (out / "notes.txt").write_text("mine")
        for layout in ("parquet", "imagefolder"):
            other = call(*export, batch_id, f"--layout={layout}", f"--out={out}", "--overwrite")
            assert other.code == 0, other.err
            assert call("dataset", "verify", str(out)).json["pictures"] == 240
            assert not tar.exists()
        assert (out / "notes.txt").read_text() == "mine"
        assert call("dataset", "verify", str(tmp_path)).code == 4
        layouts = [one["layout"] for one in call("dataset", "ls", f"--batch={batch_id}").json]
        assert layouts == ["imagefolder", "parquet", "webdataset", "webdataset"]
