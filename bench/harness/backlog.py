"""A large backlog for benches: batches whose jobs the product's own code has inserted, without a prompt file."""

from collections.abc import Iterator
from itertools import islice
from uuid import UUID

from sqlalchemy import Engine, text

from common import uploads
from common.accounts import tenants
from common.batches import chunks, expansion
from common.batches import lifecycle as batches
from common.batches.chunks import Chunk
from common.batches.plan import Plan, PlannedJob, Planner
from common.catalog import catalog
from common.config import SHIPPED_CATALOG
from common.db import new_id, transaction
from common.enums import Tier
from common.uploads import Upload

PER_JOB = 4  # images
CHUNK_JOBS = 5000
MODEL = "zh-v0"


def fill(
    database: Engine,
    tenant: str,
    images: int,
    tier: Tier = Tier.BULK,
    steps: int = 20,
    per_job: int = PER_JOB,
    reuse: bool = False,
) -> UUID:
    """Insert a batch of so many queued images; all are compatible. `reuse`: they take what is stored."""
    plan = Plan(
        defaults={"model": MODEL, "steps": steps, "width": 512, "height": 512},
        images_per_prompt=per_job,
        seed=0,
        reuse=reuse,
    )
    with transaction(database) as connection:
        tenant_id = tenants.ensure_tenant(connection, tenant)
        upload = Upload(new_id(), "txt", 0, "")
        uploads.record(connection, tenant_id, upload)
        batch_id = batches.submit(connection, tenant_id, upload.id, plan, tier=tier)
        batch = chunks.read_batch(connection, batch_id)
        assert batch
        drawn = planned(plan, images // per_job)
        chunks.record_checked(connection, batch, Chunk(0, 0, True, 0))
        connection.execute(PROMPTS, {"batch": batch_id, "prompts": images // per_job})
    while True:
        with transaction(database) as connection:
            batch = chunks.read_batch(connection, batch_id)
            assert batch
            chunk = list(islice(drawn, CHUNK_JOBS))
            end = batch.jobs + len(chunk)
            is_last = end >= images // per_job
            rows = expansion.build_rows(batch, chunk, batch.jobs)
            expansion.expand(connection, batch, Chunk(end, end, is_last, len(chunk)), rows)
        if is_last:
            return batch_id


def planned(plan: Plan, prompts: int) -> Iterator[PlannedJob]:
    planner = Planner(plan, catalog.read(SHIPPED_CATALOG))
    for place in range(prompts):
        yield planner.plan({"prompt": f"第{place}幅画，山水之间的一座小亭"}, place)


def vacuum(database: Engine) -> None:
    """Do what autovacuum would do soon."""
    with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("CHECKPOINT"))


PROMPTS = text("UPDATE batches SET prompts = :prompts WHERE id = :batch")
