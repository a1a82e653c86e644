"""The bytes of images on the dashboard: for sessions of their tenant only."""

import io
from dataclasses import replace
from uuid import UUID

import httpx
from PIL import Image

from common.db import transaction
from common.enums import Scope
from common.queue import leases
from common.storage import Storage, sha256
from tests.support.serving import Api
from tests.support.stories import Story
from tests.support.visiting import visiting


def stored_image(api: Api, story: Story) -> UUID:
    story.submit()
    buffer = io.BytesIO()
    Image.new("RGB", (640, 320), (200, 30, 30)).save(buffer, "PNG")
    microbatch, data = story.started(), buffer.getvalue()
    outcome = story.outcome(microbatch.images[0], microbatch.lease_id)
    outcome = replace(outcome, sha256=sha256(data), bytes=len(data))
    Storage(api.settings).put(str(outcome.key), data, "image/png")
    with transaction(story.database) as connection:
        leases.publish(connection, microbatch.lease_id, [outcome])
    return outcome.image_id


def test_an_image_is_shown_to_sessions_of_its_tenant_only(api: Api, story: Story) -> None:
    url = f"/dashboard/images/{stored_image(api, story)}"
    with visiting(api, scopes=[Scope.VIEWER]) as visit:
        thumbnail = visit.browser.get(f"{url}/thumbnail")
        assert (thumbnail.status_code, thumbnail.headers["Content-Type"]) == (200, "image/webp")
        assert "immutable" in thumbnail.headers["Cache-Control"]
        assert Image.open(io.BytesIO(thumbnail.content)).size == (256, 128)
        content = visit.browser.get(f"{url}/content")
        assert content.status_code == 302
        assert httpx.get(content.headers["Location"], trust_env=False).headers["Content-Type"] == "image/png"
        saved = httpx.get(visit.browser.get(f"{url}/file").headers["Location"], trust_env=False)
        assert saved.headers["Content-Disposition"].startswith("attachment; filename=")
        assert saved.content == httpx.get(content.headers["Location"], trust_env=False).content
    with visiting(api, "somebody else") as visit:
        assert visit.browser.get(f"{url}/thumbnail").status_code == 404
    with api.stranger() as browser:
        assert browser.get(f"{url}/content").headers["Location"].startswith(f"{api.url}/dashboard/sign-in")
