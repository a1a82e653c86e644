"""What a dataset is made of, and how it is written: several batches, a condition, shards, other formats and sizes."""

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import load_dataset
from huggingface_hub import DatasetCard
from sqlalchemy import text

from common.batches.plan import Plan
from common.config import Settings
from common.db import new_id
from common.labels.reader import read_labels
from tests.support.exports import LOOK, ExportStory, bytes_in, problems_of, rows_in, shards_in
from tests.support.stories import Story
from worker.datasets import exporter

LAYOUTS = ("webdataset", "imagefolder", "parquet")
PROMPTS = [f"红色的圆形 {n}" for n in range(4)]


@pytest.fixture
def farm(story: Story, settings: Settings) -> ExportStory:
    return ExportStory(story, settings)


def test_several_batches_are_one_dataset(farm: ExportStory, tmp_path: Path) -> None:
    """Their rows follow one another, in shards that may have rows of both."""
    first, second = farm.rendered(PROMPTS[:3]), farm.rendered([*PROMPTS[2:], "星形 #failed"], seed=50)
    made = farm.exported(tmp_path / "made", first, second, shard_images=4)
    rows = rows_in(made)
    assert [row["prompt"] for row in rows if row["index"] == 0] == [*PROMPTS[:3], *PROMPTS[2:], "星形 #failed"]
    assert [row["seed"] for row in rows] == [*range(6), *range(50, 56)]
    assert shards_in(made) == [(4, 4), (4, 4), (4, 2)]
    manifest = json.loads((made / "manifest.json").read_text())
    assert [one["id"] for one in manifest["batches"]] == [str(first), str(second)]
    card = (made / "README.md").read_text()
    assert "10 images of 4 different prompts" in card
    assert all(str(one) in card for one in (first, second))
    assert bytes_in(farm.exported(tmp_path / "again", first, second, shard_images=4)) == bytes_in(made)
    other = farm.exported(tmp_path / "other", second, first, shard_images=4)
    assert [row["seed"] for row in rows_in(other)] == [*range(50, 56), *range(6)]


def test_what_batches_keep_is_in_their_order(farm: ExportStory, tmp_path: Path) -> None:
    plan, batches = Plan(defaults=LOOK, keep="all", images_per_prompt=1, seed=0), list[UUID]()
    for name in ("b", "a", "c"):
        batches.append(farm.batch_of_lines({"prompt": PROMPTS[0], name: name}, plan=plan))
        farm.expander.work(batches[-1], 60)
        farm.finished(batches[-1])
    for order in ((0, 1, 2), (2, 0, 1)):
        made = farm.exported(tmp_path / str(order[0]), *(batches[at] for at in order))
        columns = json.loads((made / "manifest.json").read_text())["columns"]
        names = [f"meta.{'bac'[at]}" for at in order]
        assert list(columns)[-3:] == names
        assert [row[name] for row, name in zip(rows_in(made), names, strict=True)] == ["bac"[at] for at in order]


def test_splits_take_from_all_batches(farm: ExportStory, tmp_path: Path) -> None:
    batches = farm.rendered(PROMPTS), farm.rendered(PROMPTS, seed=50)
    rows = rows_in(farm.exported(tmp_path, *batches, splits={"test": 0.5}))
    assert len(rows) == 16
    assert len({(row["prompt"], row["split"]) for row in rows}) == 4
    for split in ("test", "train"):
        seeds = [row["seed"] for row in rows if row["split"] == split]
        assert (min(seeds) < 50, max(seeds) >= 50) == (True, True)


def test_a_dataset_waits_for_its_second_batch(farm: ExportStory, tmp_path: Path) -> None:
    first = farm.rendered(PROMPTS)
    second = farm.expanded(PROMPTS)
    dataset_id = farm.submitted(first, second, shard_images=4)
    farm.exporter.work(dataset_id, 60)
    waiting = farm.dataset(dataset_id)
    assert (waiting.state, waiting.shards, waiting.source) == ("writing", 1, 0)
    while microbatch := farm.claim():
        farm.start(microbatch)
        farm.publish(microbatch)
    farm.end()
    farm.exporter.work(dataset_id, 60)
    assert farm.dataset(dataset_id).state == "ready"


def test_a_batch_that_is_not_there_is_named(farm: ExportStory, client: httpx.Client) -> None:
    batch_id, stranger = farm.rendered(PROMPTS[:1]), new_id()

    def post(**fields: Any) -> tuple[int, dict[str, Any]]:
        answer = client.post("/v1/datasets", json=fields)
        return answer.status_code, answer.json()

    status, found = post(batches=[str(batch_id), str(stranger)])
    assert (status, found["detail"]) == (404, f"There is no batch {stranger}.")
    wrong: list[dict[str, Any]] = [
        {},
        {"batches": []},
        {"batch": str(batch_id), "batches": [str(batch_id)]},
        {"batches": [str(batch_id)] * 2},
    ]
    for fields in wrong:
        status, found = post(**fields)
        assert (status, found["errors"][0]["field"]) == (422, "batches")
    status, found = post(batches=[str(batch_id)], where="steps >= 1", resize=32)
    assert (status, found["batches"], found["where"], found["resize"]) == (201, [str(batch_id)], "steps >= 1", 32)
    assert [one["id"] for one in client.get(f"/v1/datasets?batch={batch_id}").json()["items"]] == [found["id"]]


def test_a_dataset_is_found_by_its_second_batch_and_stale_with_it(farm: ExportStory, client: httpx.Client) -> None:
    first, second = farm.rendered(PROMPTS[:1]), farm.rendered(PROMPTS[1:2])
    dataset_id = farm.submitted(first, second)
    farm.exporter.work(dataset_id, 60)
    (found,) = client.get(f"/v1/datasets?batch={second}").json()["items"]
    assert (found["id"], found["images"]["total"], found["stale"]) == (str(dataset_id), 4, False)
    unfinished = farm.submitted(first, second)
    assert client.delete(f"/v1/batches/{second}").status_code == 204
    assert client.get(f"/v1/datasets/{dataset_id}").json()["stale"]
    assert farm.dataset(unfinished).error_code == "batch_deleted"


def test_a_condition_chooses_rows(farm: ExportStory, client: httpx.Client, tmp_path: Path) -> None:
    batch_id = farm.rendered([*PROMPTS, "星形 #failed", "心形 #flagged"])
    made = farm.exported(tmp_path / "made", batch_id, where="seed >= 2 and status in ('stored', 'flagged')")
    assert [row["seed"] for row in rows_in(made)] == [*range(2, 8), 10, 11]
    assert "    seed >= 2 and status in ('stored', 'flagged')" in (made / "README.md").read_text()
    assert json.loads((made / "manifest.json").read_text())["where"].startswith("seed >= 2")
    (found,) = client.get("/v1/datasets").json()["items"]
    assert found["images"] == {"total": 8, "written": 8, "stored": 6}
    (label,) = read_labels((made / "samples.jpg").read_bytes())
    assert (label.elements or {})["ProduceID"] == "2", "the samples are of the chosen pictures"
    nothing = farm.submitted(batch_id, where="seed > 1000")
    farm.exporter.work(nothing, 60)
    assert farm.dataset(nothing).error_code == "unwritable"
    assert farm.dataset(nothing).error_message.startswith("`where` chose 0 images")


def test_shards_are_counted_by_pictures(farm: ExportStory, tmp_path: Path) -> None:
    prompts = ["星形 #failed", PROMPTS[0], "心形 #flagged", *PROMPTS[1:], "方形 #failed"]
    batch_id = farm.rendered(prompts)
    assert shards_in(farm.exported(tmp_path / "made", batch_id, shard_images=4)) == [(8, 4), (6, 4)]
    size = sum(image.bytes or 0 for image in farm.images_of(batch_id)[:4])
    assert size < 1_000_000
    answer = farm.exported(tmp_path / "small", batch_id, shard_images=2)
    assert shards_in(answer) == [(6, 2), (2, 2), (2, 2), (4, 2)]
    card = (answer / "README.md").read_text()
    assert "data/train-{00000..00003}.tar" in card


def test_a_shard_has_a_limit_of_rows_without_a_picture(
    farm: ExportStory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "SHARD_ROWS", 6)
    batch_id = farm.rendered(["星形 #failed"] * 5 + PROMPTS[:1])
    assert shards_in(farm.exported(tmp_path, batch_id, shard_images=4)) == [(6, 0), (6, 2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_are_written_in_another_format_and_size(farm: ExportStory, tmp_path: Path, layout: str) -> None:
    """With their label; the row has the checksum of the file, and that of the original."""
    batch_id = farm.rendered(PROMPTS)
    plan = {"layout": layout, "image_format": "webp", "quality": 80, "resize": 32}
    made = farm.exported(tmp_path / "made", batch_id, **plan)
    rows, originals = rows_in(made), farm.images_of(batch_id)
    assert {(row["format"], row["width"], row["height"]) for row in rows} == {("webp", 32, 32)}
    assert [row["original_sha256"] for row in rows] == [image.sha256 for image in originals]
    assert {(row["model_revision"], row["worker_class"]) for row in rows} == {("1", '{"device": "stub"}')}
    pictures = pictures_of(made, layout)
    assert [hashlib.sha256(data).hexdigest() for data in pictures] == [row["sha256"] for row in rows]
    labels = [label.elements for data in pictures for label in read_labels(data)]
    assert [(label or {})["ProduceID"] for label in labels] == [str(row["seed"]) for row in rows]
    assert sum(len(data) for data in bytes_in(made).values()) == farm.rows("SELECT bytes FROM datasets")[0].bytes
    assert bytes_in(farm.exported(tmp_path / "again", batch_id, **plan)) == bytes_in(made)
    loaded = load_dataset(str(made), cache_dir=str(tmp_path / "cache"))["train"]
    name = "webp" if layout == "webdataset" else "image"
    assert {picture.size for picture in loaded[name]} == {(32, 32)}
    card = (made / "README.md").read_text()
    assert "webp, quality 80; the shorter side is at most 32 pixels" in card
    if layout == "webdataset":
        assert "row['webp'] is the image" in card


def pictures_of(folder: Path, layout: str) -> list[bytes]:
    if layout == "parquet":
        return [row["image"]["bytes"] for row in pq.read_table(folder / "data/train-00000.parquet").to_pylist()]
    if layout == "webdataset":
        with tarfile.open(folder / "data/train-00000.tar") as tar:
            return [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".webp")]
    return [(folder / f"data/train-00000/{row['key']}.webp").read_bytes() for row in rows_in(folder)]


def test_a_condition_is_about_the_picture_as_it_was_rendered(farm: ExportStory, tmp_path: Path) -> None:
    rows = rows_in(farm.exported(tmp_path, farm.rendered(PROMPTS), where="width = 64 and format = 'png'", resize=32))
    assert {(row["width"], row["original_sha256"] is None) for row in rows} == {(32, False)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_is_one_of_the_hub_and_names_only_what_is_there(
    farm: ExportStory, tmp_path: Path, layout: str
) -> None:
    """Of a dataset with a split of which nothing is stored."""
    batch_id = farm.rendered([*PROMPTS, PROMPTS[0], "星形 #failed"])
    split = {"test": 0.02}
    made = farm.exported(tmp_path, batch_id, layout=layout, splits=split, shard_images=4)
    card = DatasetCard.load(made / "README.md")
    assert (card.data.license, card.data.language, card.data.size_categories) == ("apache-2.0", ["zh"], ["n<1K"])
    (config,) = card.data.to_dict()["configs"]
    assert config["config_name"] == "default"
    for one in config["data_files"]:
        assert list(made.glob(one["path"])), one
    assert "10 images of 4 different prompts" in card.text
    for pattern in re.findall(r'FOLDER/([^"]+)"', card.text):
        assert expanded(made, pattern), pattern
    assert {path for path in re.findall(r"`([a-z]+)/`", card.text) if not (made / path).is_dir()} == set()


def expanded(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern of the card; all those of braces are there."""
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if not braces:
        return list(folder.glob(pattern))
    head, first, last, tail = braces.groups()
    found = [folder / f"{head}{number:05}{tail}" for number in range(int(first), int(last) + 1)]
    return found if all(path.is_file() for path in found) else []


def test_a_card_names_the_shards_that_have_pictures(farm: ExportStory, tmp_path: Path) -> None:
    """Of the middle one all pictures are lost."""
    batch_id = farm.rendered(PROMPTS[:3])
    lost = [image.key for image in farm.images_of(batch_id)[2:4]]
    farm.storage.delete(lost)
    made = farm.exported(tmp_path, batch_id, shard_images=2)
    assert shards_in(made) == [(2, 2), (2, 0), (2, 2)]
    pattern = "data/train-{00000,00002}.tar"
    assert pattern in (made / "README.md").read_text()
    assert len(list(webdataset.WebDataset(str(made / pattern), shardshuffle=False))) == 4


def test_an_edited_card_is_no_damage(farm: ExportStory, tmp_path: Path) -> None:
    made = farm.exported(tmp_path, farm.rendered(PROMPTS))
    with (made / "README.md").open("a") as card:
        card.write("\nMy words.\n")
    assert problems_of(made) == []
    (made / "README.md").unlink()
    assert problems_of(made) == ["README.md: it is missing."]


def test_an_interrupted_export_of_batches_goes_on_where_it_was(farm: ExportStory, tmp_path: Path) -> None:
    """In the second batch, after the worker that wrote it was killed."""
    batches = farm.rendered(PROMPTS), farm.rendered(PROMPTS, seed=50)
    whole = bytes_in(farm.exported(tmp_path / "whole", *batches, shard_images=2))
    dataset_id = farm.submitted(*batches, shard_images=2)
    while farm.dataset(dataset_id).source == 0:
        farm.exporter.work(dataset_id, 0)  # a shard at a time
    with farm.database.begin() as connection:
        connection.execute(
            text("UPDATE datasets SET owner_id = :owner, touched_at = now() - interval '31 s' WHERE id = :id"),
            {"owner": new_id(), "id": dataset_id},
        )
    assert not farm.exporter.work(dataset_id, 60)
    farm.save(dataset_id, tmp_path / "made")
    assert bytes_in(tmp_path / "made") == whole
