"""What the tests of the domain tell their stories with: tenants, jobs and leases of one database, in few words."""

import secrets
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Row, text

from common.accounts import tenants
from common.catalog.catalog import read
from common.db import id_of_time, new_id, transaction
from common.enums import ImageState, Tier
from common.queue import charges, jobs, lanes, leases, orphans, tiers
from common.queue import claim as claims
from common.queue.claim import Image, Microbatch, Offer
from common.queue.leases import Outcome, Published, Rescued
from common.queue.tiers import Moved
from common.recipes.recipe import Draft, Recipe, resolve
from common.storage import image_key, sha256

CATALOG = read(Path(__file__).parents[2] / "models" / "catalog.toml")

EXPIRE_LEASE = text("UPDATE leases SET expires_at = now() - interval '1 s' WHERE id = :lease AND ended_at IS NULL")


class Clock:
    """A monotonic clock that stands still until a test sets `now`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Story:
    def __init__(self, database: Engine) -> None:
        self.database = database
        self.worker_id = new_id()

    def recipe(self, **fields: Any) -> Recipe:
        draft = Draft(**{"prompt": "红色的圆形", "model": "mini-zh", "steps": 2, **fields})
        return resolve(draft, CATALOG, "mini-zh", root_seed=1)

    def tenant(self, name: str = "somebody", weight: float | None = None) -> UUID:
        with transaction(self.database) as connection:
            tenant = tenants.ensure_tenant(connection, name)
            if weight:
                connection.execute(text("UPDATE tenants SET weight = :w WHERE id = :t"), {"w": weight, "t": tenant})
        return tenant

    def submit(
        self,
        tenant: str = "somebody",
        tier: Tier = Tier.STANDARD,
        expires_after_s: float | None = None,
        at: datetime | None = None,
        **fields: Any,
    ) -> UUID:
        """`at`: as if it had been submitted then."""
        tenant_id, recipe = self.tenant(tenant), self.recipe(**fields)
        job_id = UUID(int=id_of_time(at.timestamp()).int + secrets.randbits(64)) if at else None
        with transaction(self.database) as connection:
            job = jobs.submit(connection, tenant_id, recipe, tier=tier, expires_after_s=expires_after_s, job_id=job_id)
            if at:
                connection.execute(text("UPDATE jobs SET created_at = :at WHERE id = :id"), {"at": at, "id": job.id})
        return job.id

    def claim(
        self,
        capacity: int = 8,
        capacities: Mapping[str, int] | None = None,
        lease_s: float = 60,
        **offer: Any,
    ) -> Microbatch | None:
        with transaction(self.database) as connection:
            wanted = capacities or {"mini-zh": capacity}
            microbatch = claims.claim(connection, Offer(self.worker_id, wanted, **offer), new_id(), lease_s)
            if microbatch:
                charges.collect(connection, microbatch.charges)
            return microbatch

    def start(self, microbatch: Microbatch) -> frozenset[UUID]:
        with transaction(self.database) as connection:
            return leases.start(connection, microbatch)

    def started(self, **claim: Any) -> Microbatch:
        microbatch = self.claim(**claim)
        assert microbatch is not None
        self.start(microbatch)
        return microbatch

    def outcome(self, image: Image, lease_id: UUID | None = None) -> Outcome:
        key = image_key(image.job_id, image.index, lease_id or new_id(), "png")
        return Outcome(image.id, ImageState.STORED, key=key, sha256=sha256(b"x"), bytes=1, render_ms=1, store_ms=1)

    def publish(self, microbatch: Microbatch, state: ImageState = ImageState.STORED, **error: Any) -> Published:
        outcomes = [
            self.outcome(image, microbatch.lease_id)
            if state == ImageState.STORED
            else Outcome(image.id, state, **error)
            for image in microbatch.images
        ]
        with transaction(self.database) as connection:
            return leases.publish(connection, microbatch.lease_id, outcomes)

    def release(self, microbatch: Microbatch) -> None:
        with transaction(self.database) as connection:
            leases.release(connection, microbatch.lease_id)

    def renew(self, microbatch: Microbatch) -> dict[UUID, frozenset[UUID]]:
        with transaction(self.database) as connection:
            return leases.renew(connection, [microbatch.lease_id], 60)

    def rescue(self) -> Rescued:
        with transaction(self.database) as connection:
            return leases.rescue(connection, leases.expired(connection, lease_s=0))

    def cancel(self, job_id: UUID) -> bool:
        with transaction(self.database) as connection:
            return jobs.cancel(connection, job_id)

    def change_tier(self, job_id: UUID, tier: Tier) -> Moved:
        tenant_id = self.job(job_id).tenant_id
        with transaction(self.database) as connection:
            return tiers.change(connection, job_id, tenant_id, tier)

    def expire(self) -> list[UUID]:
        with transaction(self.database) as connection:
            return jobs.expire(connection, jobs.overdue(connection))

    def leftovers(self, grace_s: float = -1) -> dict[UUID, list[str]]:
        with transaction(self.database) as connection:
            return orphans.orphaned_keys(connection, grace_s)

    def die(self, microbatch: Microbatch) -> Rescued:
        """Let a lease expire, and rescue what it held."""
        with transaction(self.database) as connection:
            connection.execute(EXPIRE_LEASE, {"lease": microbatch.lease_id})
        return self.rescue()

    def skip_backoff(self) -> None:
        with transaction(self.database) as connection:
            connection.execute(text("UPDATE images SET not_before = now() WHERE not_before IS NOT NULL"))
            leases.end_backoff(connection)

    def job(self, job_id: UUID) -> Row[Any]:
        with self.database.connect() as connection:
            return connection.execute(text("SELECT * FROM jobs WHERE id = :id"), {"id": job_id}).one()

    def images(self, job_id: UUID) -> list[Row[Any]]:
        with self.database.connect() as connection:
            return list(
                connection.execute(text("SELECT * FROM images WHERE job_id = :j ORDER BY index"), {"j": job_id})
            )

    def owner(self, microbatch: Microbatch) -> str:
        """The tenant of a microbatch whose images have one."""
        statement = text("SELECT tenants.name FROM tenants JOIN jobs ON tenant_id = tenants.id WHERE jobs.id = :id")
        with self.database.connect() as connection:
            return str(connection.execute(statement, {"id": microbatch.images[0].job_id}).scalar_one())

    def balances(self) -> bool:
        """Whether each lane counts what it has, by state."""
        self.count_ended()
        return not self.rows("""
            SELECT lanes.id FROM lanes LEFT JOIN images ON images.lane_id = lanes.id GROUP BY lanes.id
            HAVING (open, stored - deleted_stored, flagged - deleted_flagged, failed - deleted_failed,
                    cancelled - deleted_cancelled) IS DISTINCT FROM (
                count(*) FILTER (WHERE state IN ('queued', 'running')), count(*) FILTER (WHERE state = 'stored'),
                count(*) FILTER (WHERE state = 'flagged'), count(*) FILTER (WHERE state = 'failed'),
                count(*) FILTER (WHERE state = 'cancelled'))
        """)

    def count_ended(self) -> None:
        """What a sweep does within seconds."""
        with transaction(self.database) as connection:
            lanes.count(connection)

    def lane_counts(self) -> dict[str, int]:
        """What is open, by tier."""
        self.count_ended()
        with self.database.connect() as connection:
            rows = connection.execute(text("SELECT tier, sum(open) FROM lanes GROUP BY tier")).all()
        return {str(tier): int(total) for tier, total in rows}

    def rows(self, statement: str, **parameters: Any) -> list[Row[Any]]:
        with self.database.connect() as connection:
            return list(connection.execute(text(statement), parameters))

    def count(self, table: str) -> int:
        with self.database.connect() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
