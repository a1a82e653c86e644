"""Datasets from a rendered batch to the libraries that read them: their content, and that their bytes are stable."""

import hashlib
import json
import random
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import DatasetDict, load_dataset
from PIL import Image
from sqlalchemy import text

from cli.verify import Verification
from common.batches import lifecycle as batches
from common.broker import Broker
from common.config import Settings
from common.datasets.columns import COLUMNS
from common.db import new_id
from common.enums import ImageState, Scope
from common.labels.reader import read_labels
from common.storage import Storage
from tests.support.serving import Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, bucket_of
from worker.control.batch_expander import Expander
from worker.control.sweep import Sweep
from worker.datasets.exporter import Exporter

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
PROMPTS = [f"红色的圆形，第{n}幅" for n in range(10)] + ["星形 #flagged", "心形 #nan"]
LAYOUTS = ("webdataset", "imagefolder", "parquet")
SHARD = 10  # images: three shards of a batch of 24

Files = dict[str, bytes]
Render = Callable[..., str]


class Death(BaseException):
    """A control worker is killed."""


class Fatal(Storage):
    """A store whose user is killed at the write of that number: before it, or after."""

    at = -1
    is_after = False

    def put(self, *arguments: Any) -> None:
        self._write(lambda: super(Fatal, self).put(*arguments))

    def put_blocks(self, *arguments: Any) -> None:
        self._write(lambda: super(Fatal, self).put_blocks(*arguments))

    def _write(self, write: Callable[[], None]) -> None:
        self.at -= 1
        if self.at == 0 and not self.is_after:
            raise Death
        write()
        if self.at == 0:
            raise Death


@pytest.fixture
def expander(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


@pytest.fixture
def exporter(story: Story, settings: Settings) -> Exporter:
    """An exporter that writes when the test calls it."""
    return Exporter(story.database, Storage(settings), CATALOG, shard_images=SHARD)


@pytest.fixture
def batch_id(client: httpx.Client, story: Story, expander: Expander, make_worker: MakeWorker) -> str:
    """A batch that has ended: of its 24 images two are flagged and two have failed."""
    batch_id = submitted(client, expander)
    render(story, make_worker)
    assert client.get(f"/v1/batches/{batch_id}").json()["state"] == "ended"
    return batch_id


def submitted(client: httpx.Client, expander: Expander, prompts: list[str] = PROMPTS, **fields: Any) -> str:
    draft = {"prompts": prompts, "defaults": LOOK, "images_per_prompt": 2, "seed": 7, "name": "圆形", **fields}
    batch_id = client.post("/v1/batches", json=draft).raise_for_status().json()["id"]
    expander.work(batch_id, 60)
    return str(batch_id)


def render(story: Story, make_worker: MakeWorker, **settings: Any) -> None:
    worker = make_worker(**settings)
    worker.loop.start()
    while not ended(story):
        worker.loop.run()


def ended(story: Story) -> list[Any]:
    story.count_ended()
    with story.database.begin() as connection:
        return batches.end(connection)


def asked(client: httpx.Client, batch_id: str, **fields: Any) -> str:
    answer = client.post("/v1/datasets", json={"batch": batch_id, **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def shown(client: httpx.Client, dataset_id: str) -> dict[str, Any]:
    return client.get(f"/v1/datasets/{dataset_id}").raise_for_status().json()


def ready(client: httpx.Client, exporter: Exporter, batch_id: str, **fields: Any) -> dict[str, Any]:
    """A dataset that is written without any trouble."""
    dataset_id = asked(client, batch_id, **fields)
    assert not exporter.work(dataset_id, 60)
    found = shown(client, dataset_id)
    assert found["state"] == "ready", found
    return found


def files_of(settings: Settings, dataset_id: str) -> Files:
    prefix = f"datasets/{dataset_id}/"
    return {key.removeprefix(prefix): data for key, data in bucket_of(settings).items() if key.startswith(prefix)}


def saved(files: Files, folder: Path) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def rows_of(files: Files) -> list[dict[str, Any]]:
    tables = [pq.read_table(BytesIO(data)) for path, data in sorted(files.items()) if path.startswith("metadata/")]
    return [row for table in tables for row in table.to_pylist()]


def sums_of(files: Files) -> dict[str, str]:
    lines = files["SHA256SUMS"].decode().splitlines()
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def abandon(story: Story) -> None:
    """Leave the database as it is half a minute after the owner of a dataset was killed."""
    with story.database.begin() as connection:
        connection.execute(
            text(
                "UPDATE datasets SET owner_id = :owner, touched_at = now() - interval '31 s' WHERE finished_at IS NULL"
            ),
            {"owner": new_id()},
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_loads_as_it_is(
    client: httpx.Client, exporter: Exporter, batch_id: str, settings: Settings, tmp_path: Path, layout: str
) -> None:
    made = ready(client, exporter, batch_id, layout=layout)
    files = files_of(settings, made["id"])
    assert sums_of(files) == {p: hashlib.sha256(d).hexdigest() for p, d in files.items() if p != "SHA256SUMS"}
    assert (made["files"], made["bytes"]) == (len(files), sum(map(len, files.values())))
    assert made["digest"] == hashlib.sha256(files["SHA256SUMS"]).hexdigest()
    assert made["images"] == {"total": 24, "written": 24, "stored": 20}
    assert made["shards"] == 2  # of ten pictures each: what has none counts for no shard

    rows = rows_of(files)
    assert [list(row) for row in rows] == [list(COLUMNS)] * 24
    assert [(row["prompt"], row["index"]) for row in rows] == [(p, i) for p in PROMPTS for i in (0, 1)]
    assert [row["seed"] for row in rows] == list(range(7, 31))
    fates = [(row["status"], row["error_code"]) for row in rows]
    assert fates == [("stored", None)] * 20 + [("flagged", None)] * 2 + [("failed", "nan_image")] * 2
    stored = rows[:20]
    assert {row["worker_class"] for row in stored} == {'{"device": "stub"}'}
    assert json.loads(stored[0]["versions"]).keys() == {"huafang", "numpy"}
    assert {(row["licence"], len(row["model_revision"])) for row in stored} == {("Apache-2.0", 40)}

    folder = saved(files, tmp_path / "dataset")
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, DatasetDict)
    assert {name: len(split) for name, split in loaded.items()} == {"train": 20}
    found = [(one["png"], one["json"]) if layout == "webdataset" else (one["image"], one) for one in loaded["train"]]
    keys = {row["key"] for row in stored}
    assert {row["key"] for _, row in found} == keys
    assert {row["prompt"] for _, row in found} == set(PROMPTS[:10])
    assert {picture.size for picture, _ in found} == {(64, 64)}
    if layout == "webdataset":
        tars = webdataset.WebDataset(str(folder / "data/train-{00000..00001}.tar"), shardshuffle=False).decode("pil")
        samples = list(tars)
        assert [sample["__key__"] for sample in samples] == [row["key"] for row in stored]
        assert [sample["json"] for sample in samples] == stored

    again = ready(client, exporter, batch_id, layout=layout)
    assert (again["digest"], again["plan"]) == (made["digest"], made["plan"])
    assert files_of(settings, again["id"]) == files


def test_the_manifest_lists_what_was_skipped(
    client: httpx.Client,
    expander: Expander,
    exporter: Exporter,
    story: Story,
    make_worker: MakeWorker,
    settings: Settings,
) -> None:
    batch_id = submitted(client, expander, [" ", *PROMPTS[:2], "红" * 600], skip_bad=True)
    render(story, make_worker)
    first, again = ready(client, exporter, batch_id), ready(client, exporter, batch_id)
    manifest = json.loads(files_of(settings, first["id"])["manifest.json"])
    assert (manifest["batch"]["prompts"], manifest["batch"]["skipped"], manifest["counts"]["rows"]) == (2, 2, 4)
    assert manifest["skipped"] == client.get(f"/v1/batches/{batch_id}").json()["skips"]
    assert [one["line"] for one in manifest["skipped"]] == [1, 4]
    assert first["digest"] == again["digest"]


def test_a_dataset_whose_exporter_was_killed_three_times_is_the_same(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings
) -> None:
    whole = ready(client, exporter, batch_id, splits={"test": 0.3})
    files, seed = files_of(settings, whole["id"]), random.randrange(10**6)
    print(f"seed {seed}")
    dice, store = random.Random(seed), Fatal(settings)
    writer = Exporter(story.database, store, CATALOG, shard_images=SHARD)
    dataset_id = asked(client, batch_id, splits={"test": 0.3})
    for _ in range(3):
        store.at, store.is_after = dice.randint(1, 5), dice.random() < 0.5
        with pytest.raises(Death):
            writer.work(dataset_id, 60)
        left = files_of(settings, dataset_id)
        written = [json.loads(data)["files"] for path, data in left.items() if path.startswith("_state/")]
        for path, file in {path: file for one in written for path, file in one.items()}.items():
            assert hashlib.sha256(left[path]).hexdigest() == file["sha256"]
        abandon(story)
    writer.work(dataset_id, 60)
    assert shown(client, dataset_id)["digest"] == whole["digest"]
    assert files_of(settings, dataset_id) == files


def test_an_exporter_that_lost_its_ownership_changes_nothing(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings
) -> None:
    digest = ready(client, exporter, batch_id)["digest"]
    dataset_id = asked(client, batch_id)

    class Slow(Storage):
        is_first = True

        def put_blocks(self, *arguments: Any) -> None:
            super().put_blocks(*arguments)
            if self.is_first:
                self.is_first = False
                assert not exporter.work(dataset_id, 60)  # it has an owner
                abandon(story)

    assert not Exporter(story.database, Slow(settings), CATALOG, shard_images=SHARD).work(dataset_id, 60)
    found = shown(client, dataset_id)
    assert (found["state"], found["shards"]) == ("waiting", 0)
    exporter.work(dataset_id, 60)
    assert shown(client, dataset_id)["digest"] == digest


def test_an_exporter_that_is_stopped_releases_its_dataset(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings
) -> None:
    dataset_id = asked(client, batch_id)
    leaving = Exporter(story.database, Storage(settings), CATALOG)
    leaving.leave()
    assert not leaving.work(dataset_id, 60)
    exporter.work(dataset_id, 60)  # at once
    assert shown(client, dataset_id)["state"] == "ready"


def test_shards_are_written_while_the_batch_is_running(
    client: httpx.Client, exporter: Exporter, expander: Expander, story: Story, make_worker: MakeWorker
) -> None:
    batch_id = submitted(client, expander)
    dataset_id = asked(client, batch_id)
    exporter.work(dataset_id, 60)
    assert shown(client, dataset_id)["state"] == "waiting"
    answer = client.get(f"/v1/datasets/{dataset_id}/files")
    wanted = f"Dataset {dataset_id} is waiting; its files are listed once it is ready."
    assert (answer.status_code, answer.json()["detail"]) == (409, wanted)
    worker = make_worker()
    worker.loop.start()
    with story.database.begin() as connection:  # all but the last prompt are rendered
        connection.execute(HOLD_THE_LAST)
    while len(story.rows("SELECT id FROM jobs WHERE finished_at IS NOT NULL")) < 11:
        worker.loop.run()
    exporter.work(dataset_id, 60)
    found = shown(client, dataset_id)
    assert (found["state"], found["shards"], found["images"]["written"]) == ("writing", 1, 10)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE images SET not_before = NULL"))
    while not ended(story):
        worker.loop.run()
    exporter.work(dataset_id, 60)
    assert shown(client, dataset_id)["digest"] == ready(client, exporter, batch_id)["digest"]


def test_all_pictures_of_a_prompt_are_in_one_split(
    client: httpx.Client,
    exporter: Exporter,
    expander: Expander,
    story: Story,
    settings: Settings,
    make_worker: MakeWorker,
) -> None:
    batch_id, splits = submitted(client, expander, PROMPTS[:8] * 2), {"test": 0.3, "validation": 0.3}
    render(story, make_worker)
    made = ready(client, exporter, batch_id, splits=splits)
    assert made["splits"] == {"test": 0.3, "train": 0.4, "validation": 0.3}
    files = files_of(settings, made["id"])
    where: dict[str, set[str]] = {}
    found = 0
    for path, data in files.items():
        if path.startswith("data/"):
            with tarfile.open(fileobj=BytesIO(data)) as tar:
                for name in tar.getnames():
                    if name.endswith(".txt"):
                        prompt, found = tar.extractfile(name).read().decode(), found + 1
                        where.setdefault(prompt, set()).add(path.removeprefix("data/").rpartition("-")[0])
    assert (found, set(where)) == (32, set(PROMPTS[:8]))
    assert {len(splits) for splits in where.values()} == {1}
    assert len(set.union(*where.values())) > 1
    assert {row["prompt"]: {row["split"]} for row in rows_of(files)} == where
    assert json.loads(files["manifest.json"])["splits"].keys() == made["splits"].keys()


def test_the_same_recipe_twice_is_two_samples(
    client: httpx.Client,
    exporter: Exporter,
    expander: Expander,
    story: Story,
    settings: Settings,
    make_worker: MakeWorker,
) -> None:
    headers = {"Content-Type": "application/jsonl"}
    lines = "\n".join([json.dumps({"prompt": "圆形", "seed": 1, "count": 1})] * 2)
    upload = client.post("/v1/uploads", content=lines.encode(), headers=headers).json()["id"]
    made = client.post("/v1/batches", json={"upload": upload, "defaults": LOOK}).json()["id"]
    expander.work(made, 60)
    render(story, make_worker)
    rows = rows_of(files_of(settings, ready(client, exporter, made)["id"]))
    assert rows[1]["key"] == f"{rows[0]['key']}-2"
    assert len(rows[0]["key"]) == 64


def test_a_missing_or_damaged_image_is_marked(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings
) -> None:
    store = Storage(settings)
    gone, damaged = (row.key for row in story.rows("SELECT key FROM images WHERE key IS NOT NULL ORDER BY id LIMIT 2"))
    store.delete([gone])
    store.put(damaged, b"something else", "image/png")
    made = ready(client, exporter, batch_id)
    rows = rows_of(files_of(settings, made["id"]))
    assert [row["error_code"] for row in rows[:3]] == ["picture_lost", "picture_lost", None]
    assert made["images"]["stored"] == 18


def test_verify_decodes_every_image(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings, tmp_path: Path
) -> None:
    first, data = story.rows("SELECT id, key FROM images WHERE key IS NOT NULL ORDER BY id LIMIT 1")[0], b"no picture"
    Storage(settings).put(first.key, data, "image/png")
    with story.database.begin() as connection:
        digest = hashlib.sha256(data).hexdigest()
        connection.execute(text("UPDATE images SET sha256 = :sha WHERE id = :id"), {"sha": digest, "id": first.id})
    for layout in LAYOUTS:
        files = files_of(settings, ready(client, exporter, batch_id, layout=layout)["id"])
        verification = Verification(saved(files, tmp_path / layout))
        verification.run()
        (problem,) = verification.problems
        assert "it cannot be read (cannot identify image file" in problem
        assert (verification.rows, verification.pictures) == (24, 20)


def test_a_batch_without_pictures_is_no_dataset(
    client: httpx.Client, exporter: Exporter, expander: Expander, story: Story, make_worker: MakeWorker
) -> None:
    batch_id = submitted(client, expander, ["心形 #nan"])
    render(story, make_worker)
    dataset_id = asked(client, batch_id)
    exporter.work(dataset_id, 60)
    found = shown(client, dataset_id)
    reason = "None of the 2 images of its batch is stored."
    assert (found["state"], found["error"]) == ("failed", {"code": "unwritable", "message": reason})
    assert (
        client.get(f"/v1/datasets/{dataset_id}/files").json()["detail"] == f"Dataset {dataset_id} is failed: {reason}"
    )


def test_the_samples_are_a_picture(client: httpx.Client, exporter: Exporter, batch_id: str, settings: Settings) -> None:
    files = files_of(settings, ready(client, exporter, batch_id)["id"])
    assert Image.open(BytesIO(files["samples.jpg"])).size == (4 * 192, 3 * 192)
    card = files["README.md"].decode()
    assert "![samples](samples.jpg)" in card
    assert "Apache License" in card
    assert "24 images: 2 failed, 2 flagged, 20 stored." in card


def test_links_to_all_files_come_in_pages(
    client: httpx.Client, exporter: Exporter, batch_id: str, settings: Settings
) -> None:
    made = ready(client, exporter, batch_id, layout="imagefolder")
    found, pages = dict[str, str](), 0
    url: Any = httpx.URL(f"/v1/datasets/{made['id']}/files", params={"limit": 7})
    while url:
        page = client.get(url)
        for file in page.json()["items"]:
            data = httpx.get(file["url"], trust_env=False).content
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            found[file["path"]] = file["sha256"]
        url, pages = page.links.get("next", {}).get("url"), pages + 1
        assert bool(url) == bool(page.json()["next_cursor"])
    files = files_of(settings, made["id"])
    assert (set(found), pages) == (set(files), -(-len(files) // 7))


def test_the_sweep_sends_a_message_for_datasets_that_nobody_writes(
    client: httpx.Client, exporter: Exporter, batch_id: str, story: Story, settings: Settings
) -> None:
    messages = Broker(settings)
    sweep = Sweep(settings, story.database, messages, Storage(settings))

    def sent(step: Callable[[], None] = sweep.export) -> int:
        messages._redis.flushdb()
        step()
        return int(messages._redis.llen("control"))

    dataset_id = asked(client, batch_id)
    assert messages._redis.llen("control") > 0
    assert sent() == 0
    with story.database.begin() as connection:
        connection.execute(text("UPDATE datasets SET touched_at = now() - interval '11 s'"))
    assert sent() == 1
    with story.database.begin() as connection:
        connection.execute(text("UPDATE datasets SET owner_id = id"))
    assert sent() == 0
    abandon(story)
    assert sent() == 1
    with story.database.begin() as connection:
        connection.execute(text("UPDATE batches SET finished_at = NULL"))
    assert (sent(sweep.end_batches), sent(sweep.end_batches)) == (1, 0)  # at once when its batch has ended
    exporter.work(dataset_id, 60)
    assert sent() == 0


def test_the_same_key_gives_the_same_dataset(client: httpx.Client, batch_id: str) -> None:
    def post(**fields: Any) -> httpx.Response:
        return client.post("/v1/datasets", json={"batch": batch_id, **fields}, headers={"Idempotency-Key": "one"})

    first, again, other = post(), post(), post(layout="parquet")
    assert again.json() == first.json()
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert [one["id"] for one in client.get("/v1/datasets").json()["items"]] == [first.json()["id"]]


def test_a_tenant_sees_only_its_own_datasets_and_scopes_are_required(
    api: Api, client: httpx.Client, batch_id: str
) -> None:
    dataset_id = asked(client, batch_id)
    with api.client("another") as stranger:
        assert stranger.get("/v1/datasets").json()["items"] == []
        assert stranger.get(f"/v1/datasets/{dataset_id}").status_code == 404
        assert stranger.get(f"/v1/datasets/{dataset_id}/files").status_code == 404
        answer = stranger.post("/v1/datasets", json={"batch": batch_id})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no batch {batch_id}.")
    with api.client(scopes=[Scope.JOBS_READ, Scope.BATCHES_WRITE]) as reader:
        assert [one["id"] for one in reader.get("/v1/datasets").json()["items"]] == [dataset_id]
        answer = reader.post("/v1/datasets", json={"batch": batch_id})
        assert (answer.status_code, answer.json()["detail"]) == (403, "This API key lacks the scope datasets:write.")
    with api.client(scopes=[Scope.DATASETS_WRITE]) as writer:
        assert writer.post("/v1/datasets", json={"batch": batch_id}).status_code == 201
        assert writer.get("/v1/datasets").status_code == 403
    wanted: list[dict[str, Any]] = [
        {"layout": "zip"},
        {"splits": {"Test": 0.1}},
        {"split": {}},
        {"splits": {"test": "x"}},
    ]
    for fields in wanted:
        answer = client.post("/v1/datasets", json={"batch": batch_id, **fields})
        errors = answer.json()["errors"]
        assert (answer.status_code, errors[0]["field"].partition(".")[0]) == (422, next(iter(fields)))


HOLD_THE_LAST = text("""
    UPDATE images SET not_before = 'infinity' WHERE job_id = (SELECT id FROM jobs ORDER BY position DESC LIMIT 1)
""")


def test_the_images_of_a_retry_replace_those_that_failed(
    client: httpx.Client,
    exporter: Exporter,
    expander: Expander,
    story: Story,
    settings: Settings,
    make_worker: MakeWorker,
) -> None:
    """The same rows and pictures as of a batch of which nothing failed."""
    batch_id = submitted(client, expander, PROMPTS[:4])
    story.publish(story.started(capacity=3), ImageState.FAILED, error_code="nan_image")
    render(story, make_worker)
    before = ready(client, exporter, batch_id)
    retry = client.post(f"/v1/batches/{batch_id}/retry-failed").raise_for_status().json()["id"]
    expander.work(retry, 60)
    whole = submitted(client, expander, PROMPTS[:4])
    dataset_id = asked(client, batch_id)
    exporter.work(dataset_id, 60)
    assert shown(client, dataset_id)["state"] == "waiting"
    while story.rows("SELECT FROM batches WHERE finished_at IS NULL"):  # the retry, and the other batch
        render(story, make_worker)
    exporter.work(dataset_id, 60)
    made, other = shown(client, dataset_id), ready(client, exporter, whole)
    assert (before["images"]["stored"], made["images"]["stored"], made["retries"]) == (5, 8, [retry])

    def without_ids(dataset: dict[str, Any]) -> list[dict[str, Any]]:
        own = ("image_id", "job_id", "created_at", "render_ms")
        rows = rows_of(files_of(settings, dataset["id"]))
        return [{name: row[name] for name in row if name not in own} for row in rows]

    assert without_ids(made) == without_ids(other)
    files = files_of(settings, made["id"])
    jobs = client.get("/v1/jobs", params={"batch": retry}).json()["items"]
    assert {job["id"] for job in jobs} == {row["job_id"] for row in rows_of(files)[:3]}
    assert json.loads(files["manifest.json"])["batch"]["retries"] == [retry]
    assert ready(client, exporter, batch_id)["digest"] == made["digest"]


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_pictures_keep_their_ai_label(
    client: httpx.Client,
    story: Story,
    expander: Expander,
    exporter: Exporter,
    make_worker: MakeWorker,
    settings: Settings,
    format: str,
) -> None:
    """In the store, as thumbnails, in each layout of a dataset and in its sheet of samples; the key is its number."""
    batch_id = submitted(client, expander, PROMPTS[:2], defaults=LOOK | {"format": format})
    render(story, make_worker, ai_label="implicit", ai_label_producer="0011")
    for layout in LAYOUTS:
        files = files_of(settings, ready(client, exporter, batch_id, layout=layout)["id"])
        rows = rows_of(files)
        assert len(rows) == 4
        assert sorted(map(number_of, pictures_of(files, layout))) == sorted(row["key"] for row in rows)
        assert {row["worker_class"] for row in rows} == {'{"ai_label": "implicit", "device": "stub"}'}
        assert number_of(files["samples.jpg"]) in {row["key"] for row in rows}
    thumbnail = client.get(f"/v1/images/{rows[0]['image_id']}/thumbnail").raise_for_status().content
    assert number_of(thumbnail) == rows[0]["key"]


def pictures_of(files: Files, layout: str) -> list[bytes]:
    if layout == "imagefolder":
        return [data for path, data in files.items() if path.endswith((".png", ".webp", ".jpg")) and "/" in path]
    (shard,) = (BytesIO(data) for path, data in files.items() if path.startswith("data/"))
    if layout == "parquet":
        return [row["image"]["bytes"] for row in pq.read_table(shard).to_pylist()]
    with tarfile.open(fileobj=shard) as tar:
        names = [name for name in tar.getnames() if not name.endswith((".txt", ".json"))]
        return [tar.extractfile(name).read() for name in names]


def number_of(data: bytes) -> str:
    (label,) = read_labels(data)
    return str((label.elements or {})["ProduceID"])
