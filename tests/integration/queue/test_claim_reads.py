"""What a claim reads: nothing of what does not wait, however much it is. By the plans that Postgres runs."""

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from sqlalchemy import Engine, text

from bench.harness import backlog
from common.db import new_id
from common.queue import claim as claims
from common.queue.claim import Memory, Offer
from worker.render.claimer import Claimer

OFFER = Offer(new_id(), {backlog.MODEL: 8})
MANY = 3000


def plan_of_a_claim(database: Engine, memory: Memory | None = None) -> list[Mapping[str, Any]]:
    """The nodes of its plan that read images, as they ran. The claim is rolled back."""
    parameters = claims.parameters_of(OFFER, new_id(), 60, memory or Memory())
    statement = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {claims.CLAIM.text}")
    with database.connect() as connection:
        (plan,) = connection.execute(statement, parameters).scalar_one()
    return [node for node in nodes(plan["Plan"]) if node.get("Relation Name") == "images"]


def nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)


def test_a_claim_steps_over_nothing_that_backs_off(database: Engine) -> None:
    """Older than most images that wait: the primary key would be read from there on."""
    backlog.fill(database, "a", MANY)
    with database.begin() as connection:
        connection.execute(text("UPDATE images SET not_before = now() + interval '1 day'"))
    for tenant in "abcd":
        backlog.fill(database, tenant, MANY)
    backlog.vacuum(database)
    assert sum(node.get("Rows Removed by Filter", 0) * node["Actual Loops"] for node in plan_of_a_claim(database)) < 100


def test_a_claim_reads_nothing_of_a_suspended_tenant(database: Engine) -> None:
    for tenant in "ab":
        backlog.fill(database, tenant, MANY)
    with database.begin() as connection:
        connection.execute(text("UPDATE tenants SET suspended_at = now()"))
    backlog.vacuum(database)
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in plan_of_a_claim(database)) == 0
    assert sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in plan_of_a_claim(database)) == 0


def test_a_claim_behind_an_old_snapshot_begins_where_images_wait(database: Engine) -> None:
    """What was claimed meanwhile stays in the index, and a full read steps over it."""
    backlog.fill(database, "a", MANY)
    backlog.vacuum(database)
    address = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT")
        claimer = Claimer(OFFER.worker_id, database)
        for _ in range(MANY // 8 * 4 // 5):
            claimed = claimer.claim(OFFER, new_id(), 60)
            assert claimed
        full, from_its_head = (blocks(database, memory) for memory in (Memory(), Memory(heads=claimed.heads)))
    assert from_its_head < full / 3


def blocks(database: Engine, memory: Memory) -> int:
    """How many blocks a claim reads to find images that wait."""
    scans = [node for node in plan_of_a_claim(database, memory) if node.get("Index Name") == "images_waiting_idx"]
    return sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in scans)
