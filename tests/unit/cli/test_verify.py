"""Datasets that were altered, with new checksums of every file. Intact ones: `test_dataset.py`."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cli.verify import Verification
from common.datasets import layout
from common.datasets.layout import Columns, Row
from common.storage import sha256
from worker.datasets import formats

SHARD = "train-00000"
COLUMNS = Columns()
PICTURE = BytesIO()
Image.new("RGB", (8, 8), "red").save(PICTURE, "PNG")
DATA = PICTURE.getvalue()

BLOCKS = {"webdataset": formats.webdataset, "parquet": formats.parquet, "imagefolder": formats.imagefolder}


def row(prompt: str) -> Row:
    known = {"key": layout.text_sha256(prompt), "prompt": prompt, "width": 8, "height": 8, "format": "png"}
    return dict.fromkeys(COLUMNS.types) | known | {"status": "stored", "sha256": sha256(DATA), "split": "train"}


def dataset(folder: Path, form: layout.Layout, rows: list[Row], of_shard: list[Row], of_manifest: list[Row]) -> Path:
    """A dataset of `rows`; the recipes in its shard manifest and its manifest are those of other rows."""
    shard = {
        layout.data_path(form, SHARD): b"".join(BLOCKS[form](((one, DATA) for one in rows), COLUMNS)),
        layout.metadata_path(SHARD): formats.metadata(rows, COLUMNS),
    }
    about = {"rows": len(rows), "files": {path: {"sha256": sha256(d), "bytes": len(d)} for path, d in shard.items()}}
    written = about | {"plan": "the plan", "pictures": len(rows), "statuses": {"stored": len(rows)}}
    manifest = {
        "plan": "the plan",
        "layout": form,
        "columns": COLUMNS.types,
        "counts": {"rows": len(rows), "stored": len(rows)},
    }
    pictures = {layout.image_path(SHARD, one): DATA for one in rows} if form == "imagefolder" else {}
    files = pictures | shard
    files[layout.shard_manifest_path(SHARD)] = json.dumps(written | {"recipes": recipes(of_shard)}).encode()
    files[layout.MANIFEST] = json.dumps(
        manifest | {"shards": {SHARD: about | {"recipes": recipes(of_manifest)}}}
    ).encode()
    files[layout.SUMS] = "".join(f"{sha256(data)}  {path}\n" for path, data in files.items()).encode()
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def recipes(rows: list[Row]) -> str:
    return layout.text_sha256("\n".join(one["key"] for one in rows))


def problems(folder: Path) -> list[str]:
    verification = Verification(folder)
    verification.run()
    return verification.problems


@pytest.mark.parametrize("form", list(BLOCKS))
def test_altered_recipes_are_found_though_every_file_has_its_checksum(tmp_path: Path, form: layout.Layout) -> None:
    rows = [row("红色的圆形"), row("蓝色的方形")]
    altered = [rows[0], row("蓝色的星形")]
    assert problems(dataset(tmp_path / "whole", form, rows, rows, rows)) == []
    shard, manifest = f"{SHARD}: recipes", f"manifest.json: recipes of {SHARD}"
    for found, complaints in [
        (dataset(tmp_path / "shard", form, altered, rows, altered), [shard]),
        (dataset(tmp_path / "manifest", form, altered, altered, rows), [manifest]),
        (dataset(tmp_path / "neither", form, altered, rows, rows), [shard, manifest]),
        (dataset(tmp_path / "order", form, rows[::-1], rows, rows), [shard, manifest]),
    ]:
        assert [problem.rpartition(": ")[0] for problem in problems(found)] == complaints
