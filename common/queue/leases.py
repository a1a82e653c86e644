"""Leases: start, publish, renew, release and rescue the images of a microbatch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import ImageState
from common.queue.claim import Microbatch
from common.queue.jobs import SETTLE, lock_jobs_of_images
from common.storage import image_key

MAX_ATTEMPTS = 3


BACKOFF_S = 2.0  # before the second attempt; doubled for each further one, with jitter


@dataclass(frozen=True)
class Outcome:
    """How one image of a started lease ended: stored (key, sha256, bytes), flagged, or failed (error)."""

    image_id: UUID
    state: ImageState
    key: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    render_ms: int | None = None
    store_ms: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False  # of a failure: back to the queue while attempts are left


@dataclass(frozen=True)
class Published:
    """`images`: those this lease made visible (stored or flagged). `ended_jobs`: jobs that ended with them."""

    images: frozenset[UUID]
    ended_jobs: tuple[UUID, ...]


@dataclass(frozen=True)
class Rescued:
    """The leases that were dead, how many images they gave back, and the jobs that ended by it."""

    leases: tuple[UUID, ...]
    images: int
    ended_jobs: tuple[UUID, ...]


def start(connection: Connection, microbatch: Microbatch) -> frozenset[UUID]:
    """Begin to render: counts the attempt, and says which images of the microbatch are still wanted of this lease."""
    lease = {"lease": microbatch.lease_id}
    if connection.execute(START_LEASE, lease).first() is None:
        return frozenset()
    ids = [image.id for image in microbatch.images]
    lock_jobs_of_images(connection, ids)
    return frozenset(connection.execute(START_IMAGES, lease | {"images": ids}).scalars())


def publish(connection: Connection, lease_id: UUID, outcomes: Sequence[Outcome]) -> Published:
    """End a lease with the outcomes of its images, and the jobs that have none left. Safe to repeat.

    An image that another lease holds by now, or that was cancelled, is left alone.
    """
    _lock(connection, lease_id)
    parameters = {
        "lease": lease_id,
        "attempts": MAX_ATTEMPTS,
        "backoff": BACKOFF_S,
        "outcomes": json.dumps([asdict(outcome) for outcome in outcomes], default=str),
    }
    ended_jobs = connection.execute(PUBLISH, parameters).scalars().all()
    connection.execute(RELEASE, {"lease": lease_id})  # whatever the outcomes did not name
    connection.execute(END_LEASE, {"lease": lease_id, "outcome": "published"})
    ids = [outcome.image_id for outcome in outcomes]
    visible = connection.execute(VISIBLE, {"lease": lease_id, "ids": ids}).scalars().all()
    return Published(frozenset(visible), tuple(ended_jobs))


def release(connection: Connection, lease_id: UUID) -> int:
    """Give the unfinished images of a lease back to the queue, the attempt not counted; how many."""
    _lock(connection, lease_id)
    released = connection.execute(RELEASE, {"lease": lease_id}).rowcount
    connection.execute(END_LEASE, {"lease": lease_id, "outcome": "released"})
    return released


def renew(connection: Connection, lease_ids: Sequence[UUID], lease_s: float) -> dict[UUID, frozenset[UUID]]:
    """Renew leases in one UPDATE. For each that is still held: the images that are still wanted of it."""
    renewed = connection.execute(RENEW, {"leases": list(lease_ids), "seconds": lease_s}).scalars().all()
    rows = connection.execute(WANTED, {"leases": renewed}).all()
    return {lease: frozenset(row.image_id for row in rows if row.lease_id == lease) for lease in renewed}


def rescue(connection: Connection, lease_s: float) -> Rescued:
    """Take back the images of leases that have expired; those whose attempts are used up fail with `worker_lost`.

    Rescues nothing within 1.5 lease times after Postgres started: nobody could renew while it was away.
    """
    expired = connection.execute(EXPIRED, {"grace": 1.5 * lease_s}).all()
    if not expired:
        return Rescued((), 0, ())
    image_ids = [image_id for lease in expired for image_id in lease.image_ids]
    lock_jobs_of_images(connection, image_ids)
    parameters = {
        "leases": [lease.id for lease in expired],
        "images": image_ids,
        "attempts": MAX_ATTEMPTS,
        "backoff": BACKOFF_S,
    }
    row = connection.execute(RESCUE, parameters).one()
    return Rescued(tuple(lease.id for lease in expired), row.images, tuple(row.ended_jobs or ()))


def end_backoff(connection: Connection) -> int:
    """Make images claimable again whose back-off is over; how many."""
    return connection.execute(END_BACKOFF).rowcount


def orphaned_keys(connection: Connection, grace_s: float, limit: int = 100) -> dict[UUID, list[str]]:
    """For leases that ended longer ago than that: the keys under which they may have stored what no image shows."""
    found: dict[UUID, list[str]] = {}
    for row in connection.execute(ORPHANED_KEYS, {"grace": grace_s, "limit": limit}):
        keys = found.setdefault(row.lease_id, [])
        if row.job_id is not None:
            keys.append(image_key(row.job_id, row._mapping["index"], row.lease_id, row.format))
    return found


def mark_cleaned(connection: Connection, lease_ids: Sequence[UUID]) -> None:
    """Note that nothing lies in storage any more that these leases stored and no image shows."""
    connection.execute(MARK_CLEANED, {"leases": list(lease_ids)})


def _lock(connection: Connection, lease_id: UUID) -> None:
    image_ids = connection.execute(LOCK_LEASE, {"lease": lease_id}).scalar()
    lock_jobs_of_images(connection, image_ids or [])


BACKOFF = "now() + make_interval(secs => :backoff * 2 ^ (images.attempts - 1) * (0.5 + random()))"


LOCK_LEASE = text("SELECT image_ids FROM leases WHERE id = :lease FOR NO KEY UPDATE")


# A started lease needs cleanup unless all of its images are stored: its worker may still upload.
END_LEASE = text("""
    UPDATE leases SET
        ended_at = coalesce(ended_at, now()), outcome = coalesce(outcome, cast(:outcome AS lease_outcome)),
        needs_cleanup = started_at IS NOT NULL AND EXISTS (
            SELECT FROM unnest(image_ids) AS held(id) WHERE NOT EXISTS (
                SELECT FROM images
                WHERE images.id = held.id AND images.lease_id = leases.id AND images.state = 'stored'))
    WHERE id = :lease
""")


START_LEASE = text("""
    UPDATE leases SET started_at = now() WHERE id = :lease AND started_at IS NULL AND ended_at IS NULL RETURNING id
""")


START_IMAGES = text("""
    WITH started AS (
        UPDATE images SET state = 'running', attempts = attempts + 1, started_at = now()
        WHERE id = ANY(:images) AND lease_id = :lease AND state = 'queued'
            AND NOT EXISTS (SELECT FROM lanes WHERE lanes.id = images.lane_id AND lanes.closed)
        RETURNING id, job_id),
    job AS (
        UPDATE jobs SET state = 'running', started_at = now()
        WHERE id IN (SELECT job_id FROM started) AND state = 'queued')
    SELECT id FROM started
""")


PUBLISH = text(f"""
    WITH outcome AS (
        SELECT * FROM jsonb_to_recordset(cast(:outcomes AS jsonb)) AS outcome(
            image_id uuid, state image_state, key text, sha256 text, bytes int, render_ms int, store_ms int,
            error_code text, error_message text, retryable boolean)),
    verdict AS (
        SELECT outcome.*, outcome.state = 'failed' AND retryable AND images.attempts < :attempts AS again
        FROM outcome JOIN images ON images.id = outcome.image_id),
    changed AS (
        UPDATE images SET
            state = CASE WHEN again THEN 'queued'::image_state ELSE verdict.state END,
            lease_id = CASE WHEN again THEN NULL ELSE lease_id END,
            not_before = CASE WHEN again THEN {BACKOFF} END,
            finished_at = CASE WHEN again THEN NULL ELSE now() END,
            key = verdict.key, sha256 = verdict.sha256, bytes = verdict.bytes,
            render_ms = verdict.render_ms, store_ms = verdict.store_ms,
            error_code = verdict.error_code, error_message = verdict.error_message
        FROM verdict
        WHERE images.id = verdict.image_id AND images.lease_id = :lease AND images.state = 'running'
        RETURNING images.id, job_id, lane_id, images.state, images.error_code, images.error_message),
    ended AS (SELECT * FROM changed WHERE state <> 'queued'),
    {SETTLE}
    SELECT id FROM settled WHERE finished_at IS NOT NULL
""")


VISIBLE = text("""
    SELECT id FROM images WHERE id = ANY(:ids) AND lease_id = :lease AND state IN ('stored', 'flagged')
""")


RELEASE = text("""
    UPDATE images SET state = 'queued', lease_id = NULL,
        attempts = attempts - CASE WHEN state = 'running' THEN 1 ELSE 0 END
    WHERE id = ANY(ARRAY(SELECT unnest(image_ids) FROM leases WHERE id = :lease))
        AND lease_id = :lease AND state IN ('queued', 'running')
""")


RENEW = text("""
    UPDATE leases SET expires_at = now() + make_interval(secs => :seconds)
    WHERE id = ANY(:leases) AND ended_at IS NULL RETURNING id
""")


WANTED = text("""
    SELECT leases.id AS lease_id, images.id AS image_id FROM leases
    JOIN images ON images.id = ANY(leases.image_ids) AND images.lease_id = leases.id
    WHERE leases.id = ANY(:leases) AND images.state IN ('queued', 'running')
""")


EXPIRED = text("""
    SELECT id, image_ids FROM leases
    WHERE ended_at IS NULL AND expires_at < now()
        AND now() - pg_postmaster_start_time() > make_interval(secs => :grace)
    ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
""")


RESCUE = text(f"""
    WITH verdict AS (
        SELECT id, state = 'running' AND attempts >= :attempts AS is_last FROM images
        WHERE id = ANY(:images) AND lease_id = ANY(:leases) AND state IN ('queued', 'running')),
    changed AS (
        UPDATE images SET
            state = CASE WHEN is_last THEN 'failed'::image_state ELSE 'queued'::image_state END,
            lease_id = CASE WHEN is_last THEN lease_id END,
            not_before = CASE WHEN state = 'running' AND NOT is_last THEN {BACKOFF} END,
            finished_at = CASE WHEN is_last THEN now() END,
            error_code = CASE WHEN state = 'running' THEN 'worker_lost' ELSE error_code END,
            error_message = CASE WHEN state = 'running' THEN 'The worker that rendered it was lost.'
                                 ELSE error_message END
        FROM verdict
        WHERE images.id = verdict.id AND lease_id = ANY(:leases) AND state IN ('queued', 'running')
        RETURNING images.id, job_id, lane_id, images.state, error_code, error_message),
    ended AS (SELECT * FROM changed WHERE state = 'failed'),
    {SETTLE},
    closed AS (
        UPDATE leases SET ended_at = now(), outcome = 'lost', needs_cleanup = started_at IS NOT NULL
        WHERE id = ANY(:leases))
    SELECT (SELECT count(*) FROM changed) AS images,
           (SELECT array_agg(id) FROM settled WHERE finished_at IS NOT NULL) AS ended_jobs
""")


# Whoever cancels or moves jobs holds images too, in another order: what they hold is ready at the next sweep.
END_BACKOFF = text("""
    UPDATE images SET not_before = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM images WHERE not_before <= now() FOR NO KEY UPDATE SKIP LOCKED))
""")


ORPHANED_KEYS = text("""
    SELECT lease.id AS lease_id, images.job_id, images.index, jobs.recipe ->> 'format' AS format
    FROM (SELECT id, image_ids FROM leases WHERE needs_cleanup AND ended_at < now() - make_interval(secs => :grace)
          ORDER BY ended_at LIMIT :limit) AS lease
    LEFT JOIN images ON images.id = ANY(lease.image_ids)
        AND NOT (images.state = 'stored' AND images.lease_id = lease.id)
    LEFT JOIN jobs ON jobs.id = images.job_id
""")


MARK_CLEANED = text("UPDATE leases SET needs_cleanup = false WHERE id = ANY(:leases) AND ended_at IS NOT NULL")
