"""What the tests of limits share: a tenant with limits, and what a refusal says."""

import json
from typing import Any

import httpx
from sqlalchemy import text

from common.db import transaction
from tests.support.stories import Story

LIMIT = text("UPDATE tenants SET limits = cast(:limits AS jsonb) WHERE id = :tenant")
ALLOW = text("UPDATE tenants SET tiers = cast(:tiers AS tier[]) WHERE id = :tenant")


def limit(story: Story, tenant: str = "somebody", **limits: int | None) -> None:
    """Give the tenant these limits, in place of those that it had."""
    tenant_id = story.tenant(tenant)
    with transaction(story.database) as connection:
        connection.execute(LIMIT, {"limits": json.dumps(limits), "tenant": tenant_id})


def allow_tiers(story: Story, *tiers: str, tenant: str = "somebody") -> None:
    tenant_id = story.tenant(tenant)
    with transaction(story.database) as connection:
        connection.execute(ALLOW, {"tiers": list(tiers), "tenant": tenant_id})


def reached(answer: httpx.Response) -> tuple[Any, ...]:
    """The limit that the answer says is reached, what is used of it, and what is allowed."""
    assert answer.status_code == 429, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "limit_reached"
    return problem["limit"], problem["used"], problem["allowed"]


def images(story: Story, tier: str | None = None) -> int:
    """The images that have not ended, as their own rows say."""
    rows = story.rows(
        "SELECT count(*) AS images FROM images JOIN jobs ON jobs.id = job_id"
        " WHERE images.finished_at IS NULL AND tier = coalesce(cast(:tier AS tier), tier)",
        tier=tier,
    )
    return int(rows[0].images)
