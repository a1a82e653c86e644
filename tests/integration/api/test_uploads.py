"""Pictures as a client uploads them. What becomes of each kind of file is in `tests/unit/api/test_image_upload.py`."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import Engine

from common.config import Settings
from common.enums import Scope
from tests.support.serving import Api, serving
from tests.support.small_disk import FILLER, small_disk
from tests.support.stories import Story
from tests.support.workers import bucket_of


def jpeg(width: int = 48, height: int = 32) -> bytes:
    turned = Image.Exif()
    turned[0x0112] = 6
    file = BytesIO()
    Image.new("RGB", (width, height), (255, 0, 0)).save(file, "JPEG", exif=turned)
    return file.getvalue()


def upload(client: httpx.Client, data: Any, media_type: str = "image/jpeg") -> httpx.Response:
    return client.post("/v1/uploads", content=data, headers={"Content-Type": media_type})


def test_an_image_is_stored_as_a_png_whatever_its_name_says(client: httpx.Client, settings: Settings) -> None:
    answer = upload(client, jpeg(), "image/png")
    assert answer.status_code == 201, answer.text
    made = answer.json()
    ((key, data),) = bucket_of(settings).items()
    assert key == f"uploads/{made['id']}.png"
    assert (made["format"], made["width"], made["height"]) == ("png", 32, 48)
    assert (made["bytes"], made["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (Image.open(BytesIO(data)).format, Image.open(BytesIO(data)).size) == ("PNG", (32, 48))


def test_a_file_that_is_no_image_is_refused_and_not_stored(
    client: httpx.Client, settings: Settings, story: Story
) -> None:
    answer = upload(client, b"GIF89a or so")
    assert (answer.status_code, answer.json()["code"]) == (422, "picture_refused")
    assert upload(client, b"").status_code == 422
    assert upload(client, jpeg(), "image/gif").status_code == 415
    assert (bucket_of(settings), story.count("uploads")) == ({}, 0)


def test_a_batch_is_not_made_of_a_picture(client: httpx.Client) -> None:
    picture = upload(client, jpeg()).json()["id"]
    answer = client.post("/v1/batches", json={"upload": picture})
    assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no upload {picture} with prompts in it.")


def test_images_may_be_uploaded_with_the_scope_to_submit_jobs(api: Api) -> None:
    with api.client(scopes=[Scope.BATCHES_WRITE, Scope.JOBS_READ]) as client:
        answer = upload(client, jpeg())
        assert (answer.status_code, answer.json()["detail"]) == (403, "This API key lacks the scope jobs:write.")
    with api.client(scopes=[Scope.JOBS_WRITE]) as client:
        assert upload(client, jpeg()).status_code == 201


@pytest.fixture
def strict(settings: Settings, database: Engine) -> Iterator[httpx.Client]:
    changes = {"picture_limit": 2_000, "picture_pixels": 2_000}
    with serving(settings.model_copy(update=changes), database) as api, api.client() as client:
        yield client


def test_bytes_and_pixels_have_limits(strict: httpx.Client) -> None:
    assert upload(strict, jpeg()).status_code == 201
    answer = upload(strict, iter([b"x" * 1_000] * 3))
    assert (answer.status_code, answer.json()["detail"]) == (413, "The file is over the limit of 2,000 bytes.")
    answer = upload(strict, jpeg(48, 42))
    assert (answer.status_code, answer.json()["code"]) == (422, "picture_refused")
    assert upload(strict, "红色的圆形\n" * 1000, "text/plain").status_code == 201  # these are for pictures only


def test_a_picture_has_its_limit_however_many_blocks_it_has(settings: Settings, database: Engine) -> None:
    """Larger than a block, which is written before the rest arrives; far below the limit of a file of prompts."""
    block = b"x" * 600_000
    with serving(settings.model_copy(update={"picture_limit": 1_500_000}), database) as api, api.client() as client:
        assert [upload(client, iter([block] * blocks)).status_code for blocks in (2, 3)] == [422, 413]


@pytest.mark.needs("small_disk")
def test_a_full_temporary_folder_is_one_sentence_and_keeps_nothing(
    client: httpx.Client, settings: Settings, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the body finds no room, where its last block does not, and where the PNG of a picture does not."""
    noise = BytesIO()
    Image.frombytes("RGB", (160, 120), os.urandom(57_600)).save(noise, "JPEG", quality=30)
    assert len(noise.getvalue()) < 20_000
    with small_disk(tmp_path, 200_000) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.outside))
        disk.fill(but=40_000)
        refused = [upload(client, noise.getvalue()), upload(client, b"x" * 600_000, "text/plain")]
        disk.fill()
        refused.append(upload(client, b"x" * 1_000, "text/plain"))
        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (507, "no_room"), answer.text
            assert "temporary folder" in answer.json()["detail"]
        assert os.listdir(disk.outside) == [FILLER]
        assert (bucket_of(settings), story.count("uploads")) == ({}, 0)
        disk.make_room()
        assert upload(client, noise.getvalue()).status_code == 201
