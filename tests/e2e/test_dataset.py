"""A dataset from the shell to a verified folder: a real API, a control worker that is killed, and a render worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from common.config import Settings
from common.storage import sha256
from tests.support.command_line import Result
from tests.support.workers import QUICK, bucket_of, running, until

Call = Callable[..., Result]

PROMPTS = [f"红色的圆形，第{n}幅" for n in range(40)] + ["星形 #flagged", "心形 #nan"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.timeout(300)
def test_a_dataset_is_exported_brought_here_and_verified(
    call: Call, client: httpx.Client, database: Engine, settings: Settings, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "dataset"
    prompts.write_text("\n".join(PROMPTS))

    def shown(dataset_id: str) -> dict[str, Any]:
        return client.get(f"/v1/datasets/{dataset_id}").json()

    with running(tmp_path, settings, "render", **QUICK), running(tmp_path, settings, "control", **QUICK) as first:
        batch = call("batch", "submit", str(prompts), "--images-per-prompt=4", "--size=64x64", "--steps=1", "--watch")
        assert batch.code == 6, batch.err  # some are flagged, some failed
        export = ("dataset", "export", batch.json["id"])
        made = call(*export, "--split=test=0.2").json["id"]
        until(lambda: any(key.startswith(f"datasets/{made}/") for key in bucket_of(settings)))
        first.kill()
        first.wait(10)
    with database.begin() as connection:
        connection.execute(text("UPDATE datasets SET touched_at = now() - interval '1 minute'"))
    with running(tmp_path, settings, "control", **QUICK):
        whole = call(*export, "--split=test=0.2", f"--out={out}")
        assert (whole.code, whole.json["id"], whole.json["state"]) == (0, made, "ready"), whole.err
        another = client.post("/v1/datasets", json={"batch": batch.json["id"], "splits": {"test": 0.2}}).json()["id"]
        until(lambda: shown(another)["state"] == "ready")
        assert shown(another)["digest"] == whole.json["digest"]
        verified = call("dataset", "verify", str(out))
        assert (verified.code, verified.json["rows"], verified.json["pictures"]) == (0, 168, 160), verified.err
        assert call("dataset", "verify", made).json["pictures"] == 160

        # An edited card is none of its damages; what was altered with its checksums is one for the farm.
        good, card, sums = files_of(out), out / "README.md", out / "SHA256SUMS"
        card.write_text("My words.")
        edited = call("dataset", "verify", str(out))
        assert (edited.code, edited.json["edited"], edited.json["farm"]) == (0, ["README.md"], made), edited.err
        sums.write_text(sums.read_text().replace(sha256(good["README.md"]), sha256(b"My words.")))
        other = call("dataset", "verify", str(out))
        assert other.code == 1
        assert "SHA256SUMS: the farm's datasets of this plan have other digests" in other.err
        alone = call("--url=http://127.0.0.1:9", "dataset", "verify", str(out))
        assert (alone.code, alone.json["farm"]) == (0, None)
        assert "Not compared with the farm: " in alone.err
        for name in ("README.md", "SHA256SUMS"):
            (out / name).write_bytes(good[name])

        # What is wrong is found, and put right by saying the same again.
        tar = out / "data/train-00000.tar"
        flipped = bytearray(tar.read_bytes())
        flipped[len(flipped) // 2] ^= 1
        tar.write_bytes(flipped)
        (out / "metadata/test-00000.parquet").unlink()
        (out / "data/stranger.tar").write_bytes(b"x")
        wrong = call("dataset", "verify", str(out))
        assert wrong.code == 1
        assert "data/train-00000.tar: its sha256 is not the one in SHA256SUMS." in wrong.err
        assert "metadata/test-00000.parquet: it is missing." in wrong.err
        assert "data/stranger.tar: it does not belong to the dataset." in wrong.err
        (out / "data/stranger.tar").unlink()
        tar.unlink()
        tar.with_name("train-00000.tar.part").write_bytes(good["data/train-00000.tar"][:100_000])  # broke off there
        assert call(*export, "--split=test=0.2", f"--out={out}").code == 0
        assert files_of(out) == good

        # Another plan is refused, until it is said to replace the one that is there.
        (out / "notes.txt").write_text("mine")
        refused = call(*export, "--layout=imagefolder", f"--out={out}")
        assert refused.code == 5
        assert "holds another dataset" in refused.err
        assert {**good, "notes.txt": b"mine"} == files_of(out)
        other = call(*export, "--layout=imagefolder", f"--out={out}", "--overwrite")
        assert other.code == 0, other.err
        assert call("dataset", "verify", str(out)).json["pictures"] == 160
        assert not tar.exists()
        assert (out / "notes.txt").read_text() == "mine"
        assert call("dataset", "verify", str(tmp_path)).code == 4
        chosen = (
            "--where=status = 'stored'",
            "--image-format=webp",
            "--resize=32",
            "--shard-size=10MB",
            "--quality=80",
        )
        small = call(*export, *chosen, "--layout=parquet", f"--out={tmp_path / 'small'}")
        assert (small.code, small.json["images"]["stored"]) == (0, 160), small.err
        assert call("dataset", "verify", str(tmp_path / "small")).json["rows"] == 160
        assert call(*export, *chosen, "--layout=parquet").json["id"] == small.json["id"]
        for option in ("--where=colour = 'red'", "--quality=80", "--shard-size=much"):
            refused = call(*export, option)
            assert (refused.code, option.partition("=")[0] in refused.err) == (2, True), refused.err
        listed = call("dataset", "ls", f"--batch={batch.json['id']}").json
        assert [one["layout"] for one in listed] == ["parquet", "imagefolder", "webdataset", "webdataset"]
