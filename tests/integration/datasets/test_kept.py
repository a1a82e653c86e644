"""Columns of a file of prompts that a batch keeps, from the file to the libraries that read its dataset."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pandas  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import load_dataset
from sqlalchemy import text

from cli.verify import Verification
from common.batches import lifecycle as batches
from common.broker import Broker
from common.config import Settings
from common.datasets.columns import COLUMNS
from common.storage import Storage
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, bucket_of
from worker.control import batch_expander
from worker.control.batch_expander import Expander
from worker.datasets.exporter import Exporter

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
ROWS: list[dict[str, Any]] = [
    {"prompt": "红色的圆形", "id": "a0", "score": 1, "tags": ["形状", {"深": 1}], "seen": True, "big": 0},
    {"prompt": "绿色的三角形", "id": "a1", "score": 0.5, "tags": None, "seen": None},
    {"prompt": "蓝色的星形", "id": 7, "score": float("nan"), "tags": "无", "seen": False},
    {"prompt": "黄色的心形 #nan", "id": None, "big": 2**62},
    {"prompt": "黑色的方形", "id": "引号\"'\\\t\n| ", "score": 3, "big": 1},
    {"prompt": "白色的圆形"},
    {"prompt": "紫色的圆形", "late": "晚"},  # behind the images that libraries look at to find the types
]
META: list[dict[str, Any]] = [
    {"id": "a0", "score": 1.0, "tags": ["形状", {"深": 1}], "seen": True, "big": 0},
    {"id": "a1", "score": 0.5, "tags": None, "seen": None, "big": None},
    {"id": "7", "score": None, "tags": "无", "seen": False, "big": None},
    {"id": None, "score": None, "tags": None, "seen": None, "big": 2**62},
    {"id": "引号\"'\\\t\n| ", "score": 3.0, "tags": None, "seen": None, "big": 1},
    dict.fromkeys(("id", "score", "tags", "seen", "big")),
    dict.fromkeys(("id", "score", "tags", "seen", "big")),
]
TYPES = {"meta.id": "string", "meta.score": "double", "meta.tags": "string", "meta.seen": "bool", "meta.big": "int64"}
# Images. In an image folder, the `datasets` library takes the types from the values of one shard.
SHARD = {"webdataset": 2, "imagefolder": 10, "parquet": 2}

Files = dict[str, bytes]
Export = Callable[..., Files]


@pytest.fixture
def expander(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


@pytest.fixture
def rendered(
    client: httpx.Client, story: Story, expander: Expander, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A batch of JSON Lines that has ended; its file is checked and expanded line by line, by many turns."""
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 1)
    monkeypatch.setattr(batch_expander, "CHECK_PROMPTS", 1)

    def render(rows: list[dict[str, Any]] = ROWS, **fields: Any) -> str:
        file = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
        answer = client.post("/v1/uploads", content=file, headers={"Content-Type": "application/jsonl"})
        draft = {"upload": answer.json()["id"], "defaults": LOOK, "seed": 7, **fields}
        batch_id = str(client.post("/v1/batches", json=draft).raise_for_status().json()["id"])
        while expander.work(batch_id, 0):
            pass
        return finish(client, story, make_worker, batch_id)

    return render


def finish(client: httpx.Client, story: Story, make_worker: MakeWorker, batch_id: str) -> str:
    worker = make_worker()
    worker.loop.start()
    while client.get(f"/v1/batches/{batch_id}").json()["state"] != "ended":
        worker.loop.run()
        story.count_ended()
        with story.database.begin() as connection:
            batches.end(connection)
    return batch_id


@pytest.fixture
def exported(client: httpx.Client, story: Story, settings: Settings) -> Export:
    """The files of a dataset in small shards."""

    def export(batch_id: str, layout: str = "webdataset", before: Callable[[str], None] = lambda made: None) -> Files:
        exporter = Exporter(story.database, Storage(settings), CATALOG, shard_images=SHARD[layout])
        made = client.post("/v1/datasets", json={"batch": batch_id, "layout": layout}).raise_for_status().json()["id"]
        before(made)
        assert not exporter.work(made, 60)
        prefix = f"datasets/{made}/"
        return {key.removeprefix(prefix): data for key, data in bucket_of(settings).items() if key.startswith(prefix)}

    return export


def saved(files: Files, folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def problems_of(folder: Path) -> list[str]:
    verification = Verification(folder)
    verification.run()
    return verification.problems


def tables_of(files: Files) -> list[Any]:
    return [pq.read_table(BytesIO(data)) for path, data in sorted(files.items()) if path.startswith("metadata/")]


@pytest.mark.parametrize("layout", SHARD)
def test_kept_values_arrive_in_each_layout(
    rendered: Callable[..., str], exported: Export, tmp_path: Path, layout: str
) -> None:
    names = [name.removeprefix("meta.") for name in TYPES]
    batch_id = rendered(keep="all" if layout == "webdataset" else names)
    late = {"meta.late": "string"} if layout == "webdataset" else {}
    files = exported(batch_id, layout)
    tables = tables_of(files)
    assert len(tables) == -(-6 // SHARD[layout])  # one has no picture
    for table in tables:  # the same columns of the same types, whatever values a shard has
        types = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types, strict=True)}
        assert list(types) == [*COLUMNS, *TYPES, *late]
        assert {name: types[name] for name in TYPES} == TYPES
    cells = [row for table in tables for row in table.to_pylist()]
    assert [row["row"] for row in cells] == [1, 3, 5, 7, 9, 11, 13]
    in_tables = [{**one, "tags": as_text(one["tags"])} for one in META]
    assert [{name.removeprefix("meta."): row[name] for name in TYPES} for row in cells] == in_tables
    manifest = json.loads(files["manifest.json"])
    assert list(manifest["columns"]) == [*COLUMNS, *TYPES, *late]
    assert "| tags | string |" in files["README.md"].decode()

    folder = saved(files, tmp_path / "dataset")
    assert problems_of(folder) == []
    frame = pandas.concat(pandas.read_parquet(path) for path in sorted((folder / "metadata").iterdir()))
    assert frame["meta.score"].dtype == "float64"
    assert frame["meta.id"].dropna().tolist() == ["a0", "a1", "7", ROWS[4]["id"]]
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    found = [row["json"] if layout == "webdataset" else row for row in loaded]
    assert {row["row"] for row in found} == {1, 3, 5, 9, 11, 13}
    if layout == "webdataset":
        tars = webdataset.WebDataset(str(folder / "data/train-{00000..00002}.tar"), shardshuffle=False).decode()
        wanted = [{**in_tables[place], "late": None} for place in (0, 1, 2, 4, 5, 6)]
        wanted[-1]["late"] = "晚"
        assert [sample["json"]["meta"] for sample in tars] == wanted
        assert {row["meta"]["late"] for row in found} == {None, "晚"}
    else:
        assert {row["meta.id"] for row in found} == {"a0", "a1", "7", ROWS[4]["id"], None}
    assert exported(batch_id, layout) == files


def as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False).replace(" ", "")


def test_a_job_shows_its_row_and_what_it_keeps(client: httpx.Client, rendered: Callable[..., str]) -> None:
    batch_id = rendered(keep=["seen", "id"])
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    assert [job["row"] for job in jobs] == [1, 3, 5, 7, 9, 11, 13]
    assert [job["meta"] for job in jobs[:4]] == [
        {"id": "a0", "seen": True},
        {"id": "a1"},
        {"id": 7, "seen": False},
        None,
    ]
    assert client.get(f"/v1/jobs/{jobs[0]['id']}").json()["meta"] == {"id": "a0", "seen": True}
    batch = client.get(f"/v1/batches/{batch_id}").json()
    assert (batch["keep"], batch["columns"]) == (["seen", "id"], {})


def test_a_retry_keeps_the_values(
    client: httpx.Client,
    story: Story,
    expander: Expander,
    make_worker: MakeWorker,
    rendered: Callable[..., str],
    exported: Export,
) -> None:
    batch_id = rendered(keep=["big"])
    retry_id = client.post(f"/v1/batches/{batch_id}/retry-failed").json()["id"]
    expander.work(retry_id, 60)
    (job,) = client.get("/v1/jobs", params={"batch": retry_id}).json()["items"]
    assert (job["row"], job["meta"]) == (7, {"big": 2**62})
    with story.database.begin() as connection:  # the stub fails it again, unless the prompt is another one
        again = "UPDATE jobs SET recipe = jsonb_set(recipe, '{prompt}', '\"心形\"') WHERE id = :job"
        connection.execute(text(again), {"job": job["id"]})
    finish(client, story, make_worker, retry_id)
    (row,) = (row for table in tables_of(exported(retry_id)) for row in table.to_pylist())
    assert (row["status"], row["row"], row["meta.big"]) == ("stored", 7, 2**62)


def test_verify_finds_an_altered_value(rendered: Callable[..., str], exported: Export, tmp_path: Path) -> None:
    files = exported(rendered(keep=["id"]), "imagefolder")
    path = "data/train-00000/metadata.jsonl"
    folder = saved({**files, path: files[path].replace(b'"meta.id":"a0"', b'"meta.id":"b0"')}, tmp_path / "dataset")
    assert any("row is" in one or ": row" in one for one in problems_of(folder))
