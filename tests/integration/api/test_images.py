"""Images over HTTP: the way to their bytes, and thumbnails."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image
from sqlalchemy import Engine

from common.config import Settings
from common.db import transaction
from common.enums import ImageState
from common.queue import leases
from common.storage import Storage, sha256
from tests.support.serving import PROMPT, Api, serving
from tests.support.stories import Story


def picture(width: int = 640, height: int = 320) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def image(client: httpx.Client, story: Story, settings: Settings) -> dict[str, Any]:
    """A stored image, with its bytes where its row says."""
    job = client.post("/v1/jobs", json=PROMPT).json()
    microbatch, data = story.started(), picture()
    told = story.outcome(microbatch.images[0], microbatch.lease_id)
    outcome = replace(told, sha256=sha256(data), bytes=len(data))
    Storage(settings).put(str(outcome.key), data, "image/png")
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, [outcome])
    found: dict[str, Any] = client.get(f"/v1/images/{job['images'][0]['id']}").json()
    return found


def test_an_image_names_its_job(client: httpx.Client, image: dict[str, Any]) -> None:
    job = client.get(f"/v1/jobs/{image['job_id']}").json()
    assert image == job["images"][0] | {"job_id": job["id"]}


def test_the_link_leads_to_the_bytes_and_needs_no_key(client: httpx.Client, image: dict[str, Any]) -> None:
    answer = client.get(image["url"])
    assert (answer.status_code, answer.headers["Cache-Control"]) == (302, "no-store")
    link = answer.headers["Location"]
    assert "X-Amz-Expires=900" in link
    data = httpx.get(link, trust_env=False).content
    assert hashlib.sha256(data).hexdigest() == image["sha256"]
    assert len(data) == image["bytes"]


def test_links_are_made_for_the_public_address(
    settings: Settings, database: Engine, image: dict[str, Any], client: httpx.Client
) -> None:
    public = settings.model_copy(update={"s3_public_url": "https://pictures.example"})
    with serving(public, database) as api, api.client() as other:
        link = other.get(f"/v1/images/{image['id']}/content").headers["Location"]
    assert link.startswith("https://pictures.example/")


def test_a_thumbnail_is_small_and_never_changes(client: httpx.Client, image: dict[str, Any]) -> None:
    path = f"/v1/images/{image['id']}/thumbnail"
    answer = client.get(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(answer.content)) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("WEBP", (256, 128))
        red, green, _ = thumbnail.convert("RGB").getpixel((128, 64))  # type: ignore[misc]
        assert (red > 180, green < 60) == (True, True)
    assert answer.headers["ETag"] == f'"{image["sha256"]}"'
    assert {"private", "immutable"} <= set(answer.headers["Cache-Control"].split(", "))
    again = client.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def half_zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize("damage", [half_zeroed, lambda data: b"", lambda data: picture(8, 8)])
def test_a_damaged_picture_is_one_sentence_and_a_log_line(
    client: httpx.Client,
    image: dict[str, Any],
    settings: Settings,
    damage: Callable[[bytes], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = urlsplit(client.get(image["url"]).headers["Location"]).path.split("/", 2)[2]
    Storage(settings).put(key, damage(picture()), "image/png")
    answer = client.get(f"/v1/images/{image['id']}/thumbnail")
    assert (answer.status_code, answer.json()["code"]) == (410, "picture_damaged")
    assert answer.json()["detail"].startswith(f"The picture of image {image['id']} is damaged")
    assert "Cache-Control" not in answer.headers
    assert any(key in record.getMessage() for record in caplog.records)


def test_a_thumbnail_is_its_tenants_alone(api: Api, image: dict[str, Any]) -> None:
    with api.client("another tenant") as other:
        assert other.get(f"/v1/images/{image['id']}/thumbnail").status_code == 404
        headers = {"If-None-Match": f'"{image["sha256"]}"'}
        assert other.get(f"/v1/images/{image['id']}/thumbnail", headers=headers).status_code == 404


@pytest.mark.parametrize("part", ["content", "thumbnail"])
def test_what_is_not_stored_has_no_picture(client: httpx.Client, story: Story, part: str) -> None:
    job = client.post("/v1/jobs", json=PROMPT | {"count": 1}).json()
    path = f"/v1/images/{job['images'][0]['id']}/{part}"
    waiting = client.get(path)
    assert (waiting.status_code, "still queued" in waiting.json()["detail"]) == (409, True)
    microbatch = story.started()
    assert "still running" in client.get(path).json()["detail"]
    story.publish(microbatch, ImageState.FLAGGED)
    flagged = client.get(path)
    assert (flagged.status_code, "safety checker" in flagged.json()["detail"]) == (404, True)


def test_without_the_image_store_thumbnails_are_unavailable_and_all_else_works(
    settings: Settings, database: Engine, image: dict[str, Any], client: httpx.Client
) -> None:
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1", "s3_public_url": None})
    with serving(away, database) as api, api.client() as other:
        answer = other.get(f"/v1/images/{image['id']}/thumbnail")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        assert other.get(f"/v1/images/{image['id']}/content").status_code == 302
        assert other.post("/v1/jobs", json=PROMPT).status_code == 201
        ready = other.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert [name for name, found in ready.json()["checks"].items() if found != "ok"] == ["s3"]
