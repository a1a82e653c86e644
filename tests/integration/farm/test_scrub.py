"""`huafang admin scrub` on real servers: what is missing, damaged or orphaned is found and repaired, and no more."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from api.queries.jobs import find_image
from api.services.images import require_key
from common import uploads
from common.config import Settings
from common.datasets import lifecycle as datasets
from common.datasets.layout import SUMS, DatasetPlan
from common.db import new_id, transaction
from common.enums import DatasetState, ImageState
from common.errors import PictureDamaged
from common.maintenance import windows
from common.maintenance.scrub import Cursor, Finding, Options, Scrub, is_clean
from common.storage import Storage, dataset_key, image_key, sha256, upload_key
from common.uploads import Upload
from embedded.farm import variables
from tests.support.ageing import age
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story

OLD_S = -5.0  # stores round the time of an object up
PICTURE = b"x"  # as `Story.outcome` records it
OLD = Options(young_s=OLD_S)
REPAIR = Options(young_s=OLD_S, repair=True)


class Bucket:
    """Images, uploads and a dataset, with their rows."""

    def __init__(self, story: Story, settings: Settings) -> None:
        self.story = BatchStory(story, settings)
        self.storage = Storage(settings)
        self.storage.write_mark(b"{}", replace=False)
        self.storage.put("images/trial", b"a trial", "application/octet-stream")

    def images(self, count: int = 1) -> list[Any]:
        """Stored images of one job; their rows."""
        job_id = self.story.submit(count=count)
        while microbatch := self.story.claim():
            self.story.start(microbatch)
            for image in microbatch.images:
                self.storage.put(image_key(job_id, image.index, microbatch.lease_id, "png"), PICTURE, "image/png")
            self.story.publish(microbatch)
        return self.story.images(job_id)

    def dataset(self, files: dict[str, bytes]) -> UUID:
        batch_id = self.story.expanded(["红色的圆形"])
        sums = "".join(f"{sha256(data)}  {path}\n" for path, data in files.items()).encode()
        with transaction(self.story.database) as connection:
            dataset_id = datasets.submit(connection, self.story.tenant(), batch_id, DatasetPlan())
            owned = datasets.acquire(connection, dataset_id, 30)
            datasets.finish(connection, owned, sha256(sums), len(files) + 1, 1)
        for path, data in {**files, SUMS: sums, "_state/train-0.json": b"{}"}.items():
            self.storage.put(dataset_key(dataset_id, path), data, "text/plain")
        return dataset_id

    def scrub(self, options: Options = OLD, cursor: Cursor | None = None) -> dict[tuple[str, str], bool]:
        """What was found, by kind and key, and whether it was repaired."""
        found: list[Finding] = []
        for findings in Scrub(self.story.database, self.storage, options, cursor or Cursor()).run():
            found += findings
        assert len({(one.kind, one.key) for one in found}) == len(found)
        return {(one.kind, one.key): one.is_repaired for one in found}

    def all_keys(self) -> set[str]:
        return {one.key for prefix in ("images/", "uploads/", "datasets/")
                for one in self.storage.list_objects(prefix, "")}  # fmt: skip


@pytest.fixture
def bucket(story: Story, settings: Settings) -> Bucket:
    return Bucket(story, settings)


def test_a_farm_in_order_has_nothing_to_repair(bucket: Bucket) -> None:
    bucket.images(3)
    bucket.dataset({"README.md": b"read me", "data/train-0.tar": b"pictures"})
    bucket.story.submit()
    before = bucket.all_keys()
    assert bucket.scrub(REPAIR) == bucket.scrub(Options(young_s=OLD_S, repair=True, digests=True)) == {}
    assert bucket.all_keys() == before
    assert json.loads(bucket.storage.read_mark() or b"") == {}


# Images


def test_an_object_that_no_image_names_is_deleted(bucket: Bucket) -> None:
    (image,) = bucket.images()
    orphans = {image_key(image.job_id, 0, new_id(), "png"), image_key(new_id(), 0, new_id(), "png")}
    for key in orphans:
        bucket.storage.put(key, PICTURE, "image/png")
    assert bucket.scrub(Options(repair=True)) == {}  # young: its worker may publish it still
    assert bucket.scrub() == {("orphaned", key): False for key in orphans}
    assert bucket.all_keys() >= orphans
    assert bucket.scrub(REPAIR) == {("orphaned", key): True for key in orphans}
    assert not bucket.all_keys() & orphans
    assert bucket.storage.exists(image.key)
    assert bucket.scrub() == {}


def test_what_a_lease_may_publish_still_is_left_alone(bucket: Bucket) -> None:
    job_id = bucket.story.submit()
    microbatch = bucket.story.started()
    key = image_key(job_id, 0, microbatch.lease_id, "png")
    bucket.storage.put(key, PICTURE, "image/png")
    assert bucket.scrub(REPAIR) == {}
    bucket.story.publish(microbatch)
    assert bucket.scrub(REPAIR) == {}
    assert bucket.all_keys() >= {key}


def test_what_is_stored_and_published_after_the_listing_is_not_missing(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.images(2)
    monkeypatch.setattr(bucket.storage, "list_objects", lambda prefix, after: [])
    assert bucket.scrub(REPAIR) == {}


def test_the_owner_of_a_lost_picture_sees_it_until_it_is_back(bucket: Bucket) -> None:
    lost, intact = bucket.images(2)
    bucket.storage.delete([lost.key])
    assert bucket.scrub() == {("missing", lost.key): False}
    assert shown(bucket, lost.id).error is None
    assert bucket.scrub(REPAIR) == {("missing", lost.key): True}
    image = shown(bucket, lost.id)
    assert (image.state, image.error.code) == (ImageState.STORED, "picture_lost")
    with pytest.raises(PictureDamaged):
        require_key(image, lost.key)
    assert shown(bucket, intact.id).error is None
    assert bucket.story.balances()  # it counts as stored everywhere, for that it was
    bucket.storage.put(lost.key, PICTURE, "image/png")
    assert bucket.scrub(REPAIR) == {("back", lost.key): True}
    assert require_key(shown(bucket, lost.id), lost.key) == lost.key
    assert bucket.scrub() == {}


def shown(bucket: Bucket, image_id: UUID) -> Any:
    with transaction(bucket.story.database) as connection:
        return find_image(connection, bucket.story.tenant(), image_id, "http://farm")[0]


def test_bytes_that_are_not_those_that_were_stored_are_found(bucket: Bucket) -> None:
    longer, other, intact = bucket.images(3)
    bucket.storage.put(longer.key, b"xx", "image/png")
    bucket.storage.put(other.key, b"y", "image/png")
    digests = Options(young_s=OLD_S, digests=True)
    assert bucket.scrub() == {("damaged", longer.key): False}
    assert bucket.scrub(digests) == {("damaged", longer.key): False, ("damaged", other.key): False}
    assert set(bucket.scrub(Options(young_s=OLD_S, digests=True, repair=True)).values()) == {True}
    codes = [shown(bucket, one.id).error for one in (longer, other, intact)]
    assert [code and code.code for code in codes] == ["picture_damaged", "picture_damaged", None]
    bucket.storage.put(other.key, PICTURE, "image/png")
    assert bucket.scrub(REPAIR) == {("damaged", longer.key): True}  # only its bytes tell that it is back
    assert bucket.scrub(Options(young_s=OLD_S, digests=True, repair=True))["back", other.key]
    assert shown(bucket, other.id).error is None


# Uploads and datasets


def test_uploads_are_compared(bucket: Bucket) -> None:
    story = bucket.story
    kept, lost = story.upload(b"one"), story.upload(b"two")
    batch = story.batch_of(["红色的圆形"])
    (used,) = story.rows("SELECT upload_id FROM batches WHERE id = :b", b=batch)
    orphan = upload_key(new_id(), "txt")
    bucket.storage.put(orphan, b"three", "text/plain")
    bucket.storage.delete([upload_key(lost, "txt"), upload_key(used.upload_id, "txt")])
    with transaction(story.database) as connection:  # recorded and not yet stored
        uploads.record(connection, story.tenant(), Upload(new_id(), "txt", 1, ""))
    assert bucket.scrub(Options(repair=True)) == {}
    age(story.database, 2)
    with transaction(story.database) as connection:
        arriving = Upload(new_id(), "txt", 1, "")
        uploads.record(connection, story.tenant(), arriving)
        connection.execute(text("DELETE FROM uploads WHERE sha256 = '' AND id <> :id"), {"id": arriving.id})
    found = bucket.scrub(Options(repair=True))
    assert found == {("missing", upload_key(lost, "txt")): True, ("missing", upload_key(used.upload_id, "txt")): False}
    assert ("orphaned", orphan) in bucket.scrub(REPAIR)
    assert orphan not in bucket.all_keys()
    rows = {row.id for row in story.rows("SELECT id FROM uploads")}
    assert rows == {kept, used.upload_id}


def test_a_dataset_without_all_of_its_files_fails(bucket: Bucket) -> None:
    files = {"README.md": b"read me", "data/train-0.tar": b"pictures"}
    lost, damaged, intact = (bucket.dataset(files) for _ in range(3))
    bucket.storage.delete([dataset_key(lost, "data/train-0.tar")])
    bucket.storage.put(dataset_key(damaged, "README.md"), b"read ms", "text/plain")
    orphan = dataset_key(new_id(), "README.md")
    bucket.storage.put(orphan, b"read me", "text/plain")
    found = bucket.scrub(Options(young_s=OLD_S, repair=True, digests=True))
    assert found == {
        ("missing", dataset_key(lost, "data/train-0.tar")): True,
        ("damaged", dataset_key(damaged, "README.md")): True,
        ("orphaned", orphan): True,
    }
    rows = {row.id: row for row in bucket.story.rows("SELECT id, state, error_code FROM datasets")}
    assert (rows[lost].state, rows[lost].error_code) == (DatasetState.FAILED, "dataset_lost")
    assert rows[damaged].state == DatasetState.FAILED
    assert rows[intact].state == DatasetState.READY


def test_a_dataset_without_its_checksums_fails(bucket: Bucket) -> None:
    without, other = (bucket.dataset({"README.md": b"read me"}) for _ in range(2))
    bucket.storage.delete([dataset_key(without, SUMS)])
    bucket.storage.put(dataset_key(other, SUMS), b"", "text/plain")
    assert set(bucket.scrub(REPAIR)) == {("missing", dataset_key(without, SUMS)), ("damaged", dataset_key(other, SUMS))}


# Windows, cursor, rate


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the bucket had many times as many objects, and the tables rows."""
    monkeypatch.setattr("common.storage.LISTED", 3)
    monkeypatch.setattr(windows, "LISTED", 3)
    monkeypatch.setattr(windows, "ROWS", 6)


@pytest.mark.usefixtures("small_windows")
def test_many_windows_find_what_one_finds(bucket: Bucket) -> None:
    stored = [image for count in (1, 4, 2, 1, 5, 3, 1) for image in bucket.images(count)]
    bucket.dataset({f"data/{number}": b"a file" for number in range(7)})
    orphans = [image_key(image.job_id, 99, new_id(), "png") for image in stored[::4]]
    orphans += [image_key(new_id(), 0, new_id(), "png") for _ in range(5)]
    for key in orphans:
        bucket.storage.put(key, PICTURE, "image/png")
    lost = [image.key for image in stored[1::3]]
    bucket.storage.delete(lost)
    expected = {("orphaned", key) for key in orphans} | {("missing", key) for key in lost}
    assert set(bucket.scrub()) == expected
    assert set(bucket.scrub(REPAIR)) == expected
    assert set(bucket.scrub()) == {("missing", key) for key in lost}


@pytest.mark.usefixtures("small_windows")
def test_a_bucket_that_was_emptied_is_found_out(bucket: Bucket) -> None:
    stored = [image for _ in range(9) for image in bucket.images(2)]
    bucket.storage.delete([image.key for image in stored])
    assert set(bucket.scrub()) == {("missing", image.key) for image in stored}


@pytest.mark.usefixtures("small_windows")
def test_a_scrub_goes_on_where_it_was_stopped(bucket: Bucket, tmp_path: Path) -> None:
    stored = [image for _ in range(9) for image in bucket.images(2)]
    bucket.dataset({"README.md": b"read me"})
    bucket.storage.delete([image.key for image in stored[::2]])
    whole, path, found, stops = Cursor(), tmp_path / "cursor", [], 0
    expected = bucket.scrub(cursor=whole)
    while True:  # each process is stopped after two windows
        cursor = Cursor.load(path)
        two = list(islice(Scrub(bucket.story.database, bucket.storage, OLD, cursor).run(), 2))
        cursor.save(path)
        found += [(one.kind, one.key) for findings in two for one in findings]
        if cursor.objects == whole.objects and len(two) < 2:
            break
        stops += 1
        assert stops < 50
    assert stops >= 3
    assert sorted(found) == sorted(expected)
    assert (cursor.found, cursor.rows) == (whole.found, whole.rows)
    assert not is_clean(cursor)


def test_a_rate_is_kept(bucket: Bucket) -> None:
    bucket.images(4)
    for digests, rests in ((False, [0.4, 0.0, 0.0]), (True, [0.1] * 4)):
        slept: list[float] = []
        options = Options(digests=digests, rate=10)
        list(Scrub(bucket.story.database, bucket.storage, options, Cursor(), slept.append).run())
        assert slept == rests


# The command


def scrub(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "common.bootstrap", "scrub", *options]
    return subprocess.run(command, env=variables(settings), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_prints_what_it_finds_and_the_numbers(story: Story, settings: Settings, tmp_path: Path) -> None:
    bucket = Bucket(story, settings)
    bucket.storage.delete(["farm-id.json"])
    (lost, _) = bucket.images(2)
    bucket.storage.delete([lost.key])
    done = scrub(settings)
    assert done.returncode == 6, done.stderr
    first, last = map(json.loads, done.stdout.splitlines())
    assert first == {"kind": "missing", "key": lost.key, "id": str(lost.id), "is_repaired": False}
    assert last == {"objects": 1, "rows": 2, "missing": 1, "damaged": 0, "orphaned": 0, "back": 0, "repaired": 0}
    repaired = scrub(settings, "--repair", "--digests", "--rate=1000", f"--cursor={tmp_path}/cursor")
    assert (repaired.returncode, json.loads(repaired.stdout.splitlines()[-1])["repaired"]) == (0, 1)
    assert list(tmp_path.glob("cursor*")) == []
    assert bucket.storage.read_mark()


def test_a_file_that_is_no_cursor_is_one_sentence(settings: Settings, database: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text('{"part": "images", "colour": "red"}')
    done = scrub(settings, f"--cursor={tmp_path}/notes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "notes" in done.stderr
    assert len(done.stderr.splitlines()) == 1
