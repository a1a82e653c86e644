"""Leases: what happens to a microbatch after its claim. What a dead lease may have stored is in `orphans`.

    claim ──► start ──► publish      the lease starts its images, and makes the rendered ones visible
      └─────────┴─────► release      or gives unfinished images back
      └─────────┴─────► fail         or counts an attempt of each: the worker failed for an unforeseen reason
                  └───► rescue       or expires, and the sweep takes its images back

A lease changes only images whose row names it: its id is the fence. A claimed image stays `queued` until its lease
starts; only then does the attempt count. Nothing here renders, stores or sends.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import ImageState
from common.failures import INTERNAL_ERROR, rests
from common.queue import sentence
from common.queue.claim import Microbatch
from common.queue.jobs import SETTLE, lock_jobs_of_images
from common.queue.reuse import reuse_key
from common.usage.ledger import ENTER

MAX_ATTEMPTS = 3
BACKOFF_S = 2.0  # before the second attempt; doubled for each further one, with jitter


@dataclass(frozen=True)
class Outcome:
    """How one image of a started lease ended: stored (key, sha256, bytes), flagged, or failed (error).

    `retryable`: a failed image goes back to the queue while attempts are left. `failed_by`: the name of the worker that
    has to leave it to others then.
    """

    image_id: UUID
    state: ImageState
    key: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    render_ms: int | None = None
    store_ms: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False
    safety_score: float | None = None  # above 0 if the image is flagged; None if nothing has judged it
    safety_concept: int | None = None  # the number of the concept with that score
    failed_by: str | None = None
    picture_key: str | None = None  # see `common.recipes.picture_key`; None if nobody has drawn it
    picture_class: str | None = None


@dataclass(frozen=True)
class Published:
    """The images that this lease has made visible (stored or flagged), and the jobs that ended with them."""

    images: frozenset[UUID]
    ended_jobs: tuple[UUID, ...]


@dataclass(frozen=True)
class Rescued:
    """The expired leases, how many images were taken back, and the jobs that ended with failed ones."""

    leases: tuple[UUID, ...]
    images: int
    ended_jobs: tuple[UUID, ...]


def start(connection: Connection, microbatch: Microbatch) -> frozenset[UUID]:
    """Start a lease and count the attempt; the images that are still wanted of it. A lease starts once."""
    return _start(connection, microbatch.lease_id, [image.id for image in microbatch.images])


def publish(connection: Connection, lease_id: UUID, outcomes: Sequence[Outcome]) -> Published:
    """End a lease with the outcomes of its images, and the jobs whose last image this was. Safe to repeat.

    Skips images that were cancelled or that another lease holds. Releases images that `outcomes` does not name.
    """
    _lock(connection, lease_id)
    parameters = {
        "lease": lease_id,
        "attempts": MAX_ATTEMPTS,
        "backoff": BACKOFF_S,
        "outcomes": json.dumps([asdict(outcome) for outcome in outcomes], default=str),
    }
    ended_jobs = connection.execute(PUBLISH, parameters).scalars().all()
    connection.execute(RELEASE, {"lease": lease_id})
    connection.execute(END_LEASE, {"lease": lease_id, "outcome": "published"})
    visible = connection.execute(VISIBLE, {"lease": lease_id, "ids": [o.image_id for o in outcomes]}).scalars().all()
    return Published(frozenset(visible), tuple(ended_jobs))


def fail(connection: Connection, lease_id: UUID, image_ids: Sequence[UUID], name: str, message: str) -> Published:
    """End a lease, started or not, at whose images the worker of that name failed for an unforeseen reason.

    Counts an attempt of each.
    """
    _start(connection, lease_id, image_ids)
    how: dict[str, Any] = {"error_code": INTERNAL_ERROR, "error_message": message, "retryable": True, "failed_by": name}
    outcomes = [Outcome(image_id, ImageState.FAILED, **how) for image_id in image_ids]
    return publish(connection, lease_id, outcomes)


def release(connection: Connection, lease_id: UUID) -> int:
    """Give the unfinished images of a lease back to the queue, without counting the attempt; how many."""
    _lock(connection, lease_id)
    released = connection.execute(RELEASE, {"lease": lease_id}).rowcount
    connection.execute(END_LEASE, {"lease": lease_id, "outcome": "released"})
    return released


def renew(connection: Connection, lease_ids: Sequence[UUID], lease_s: float) -> dict[UUID, frozenset[UUID]]:
    """Renew leases in one UPDATE. For each that has not ended: the images that are still wanted of it."""
    renewed = connection.execute(RENEW, {"leases": list(lease_ids), "seconds": lease_s}).scalars().all()
    rows = connection.execute(WANTED, {"leases": renewed}).all()
    return {lease: frozenset(row.image_id for row in rows if row.lease_id == lease) for lease in renewed}


def expired(connection: Connection, lease_s: float) -> list[UUID]:
    """Leases to rescue. None within 1.5 lease times after Postgres started: no worker could renew while it was away."""
    return list(connection.execute(EXPIRED, {"grace": 1.5 * lease_s}).scalars())


def rescue(connection: Connection, lease_ids: Sequence[UUID]) -> Rescued:
    """Take back the images of those that have expired; one whose attempts are used up fails with `worker_lost`."""
    expired = connection.execute(LOCK_EXPIRED, {"leases": list(lease_ids)}).all()
    if not expired:
        return Rescued((), 0, ())
    image_ids = [image_id for lease in expired for image_id in lease.image_ids]
    lock_jobs_of_images(connection, image_ids)
    parameters = {
        "leases": [lease.id for lease in expired],
        "images": image_ids,
        "attempts": MAX_ATTEMPTS,
        "backoff": BACKOFF_S,
        "message": sentence("worker_lost"),
    }
    row = connection.execute(RESCUE, parameters).one()
    return Rescued(tuple(lease.id for lease in expired), row.images, tuple(row.ended_jobs or ()))


def end_backoff(connection: Connection) -> int:
    """Make images claimable whose back-off has passed; how many."""
    return connection.execute(END_BACKOFF).rowcount


def _start(connection: Connection, lease_id: UUID, image_ids: Sequence[UUID]) -> frozenset[UUID]:
    lease = {"lease": lease_id}
    if connection.execute(START_LEASE, lease).first() is None:
        return frozenset()
    ids = list(image_ids)
    lock_jobs_of_images(connection, ids)
    return frozenset(connection.execute(START_IMAGES, lease | {"images": ids}).scalars())


def _lock(connection: Connection, lease_id: UUID) -> None:
    image_ids = connection.execute(LOCK_LEASE, {"lease": lease_id}).scalar()
    lock_jobs_of_images(connection, image_ids or [])


# When a failed or lost attempt may be repeated.
BACKOFF = "now() + make_interval(secs => :backoff * 2 ^ (images.attempts - 1) * (0.5 + random()))"


def _appended(name: str) -> str:
    """`failed_by` with this name (SQL), unless it is null or there already."""
    return f"""CASE WHEN {name} IS NULL OR {name} = ANY(images.failed_by) THEN images.failed_by
        ELSE array_append(images.failed_by, {name}) END"""


# The leases that have held an image, of which one gives it back now: the last 20.
GAVE_BACK = "(images.earlier_leases || images.lease_id)[greatest(cardinality(images.earlier_leases) - 18, 1):]"

# Locks a lease.
LOCK_LEASE = text("SELECT image_ids FROM leases WHERE id = :lease FOR NO KEY UPDATE")

# Ends a lease. It needs cleanup if it started and not all its images are stored by it, also if a worker returns late.
END_LEASE = text("""
    UPDATE leases SET
        ended_at = coalesce(ended_at, now()), outcome = coalesce(outcome, cast(:outcome AS lease_outcome)),
        needs_cleanup = started_at IS NOT NULL AND EXISTS (
            SELECT FROM unnest(image_ids) AS held(id) WHERE NOT EXISTS (
                SELECT FROM images
                WHERE images.id = held.id AND images.lease_id = leases.id AND images.state = 'stored'))
    WHERE id = :lease
""")

# Starts a lease that has neither started nor ended.
START_LEASE = text("""
    UPDATE leases SET started_at = now() WHERE id = :lease AND started_at IS NULL AND ended_at IS NULL RETURNING id
""")

# Starts the images that the lease still holds, and their jobs; not in closed lanes.
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

# Ends the running images of the lease with their outcomes, or sends them back; enters what is stored, and settles jobs.
PUBLISH = text(f"""
    WITH outcome AS (
        SELECT * FROM jsonb_to_recordset(cast(:outcomes AS jsonb)) AS outcome(
            image_id uuid, state image_state, key text, sha256 text, bytes int, render_ms int, store_ms int,
            error_code text, error_message text, retryable boolean, safety_score real, safety_concept smallint,
            failed_by text, picture_key text, picture_class text)),
    verdict AS (
        SELECT outcome.*, outcome.state = 'failed' AND retryable AND images.attempts < :attempts AS again, tenant_id
        FROM outcome JOIN images ON images.id = outcome.image_id JOIN jobs ON jobs.id = images.job_id),
    changed AS (
        UPDATE images SET
            state = CASE WHEN again THEN 'queued'::image_state ELSE verdict.state END,
            lease_id = CASE WHEN again THEN NULL ELSE lease_id END,
            earlier_leases = CASE WHEN again THEN {GAVE_BACK} ELSE earlier_leases END,
            not_before = CASE WHEN again THEN {BACKOFF} END,
            finished_at = CASE WHEN again THEN NULL ELSE now() END,
            key = verdict.key, sha256 = verdict.sha256, bytes = verdict.bytes, render_ms = verdict.render_ms,
            store_ms = verdict.store_ms, error_code = verdict.error_code, error_message = verdict.error_message,
            safety_score = verdict.safety_score, safety_concept = verdict.safety_concept,
            picture_key = decode(verdict.picture_key, 'hex'),
            reuse_key = {reuse_key("verdict.tenant_id", "verdict.picture_key", "verdict.picture_class")},
            failed_by = {_appended("verdict.failed_by")}
        FROM verdict
        WHERE images.id = verdict.image_id AND images.lease_id = :lease AND images.state = 'running'
        RETURNING images.id, job_id, lane_id, images.state, images.error_code, images.error_message, images.bytes,
                  images.render_ms),
    ended AS (SELECT * FROM changed WHERE state <> 'queued'),
    {ENTER},
    {SETTLE}
    SELECT id FROM settled WHERE finished_at IS NOT NULL
""")

# Finds the images that this lease has stored or flagged.
VISIBLE = text("""
    SELECT id FROM images WHERE id = ANY(:ids) AND lease_id = :lease AND state IN ('stored', 'flagged')
""")

# Gives back all images that the lease still holds.
RELEASE = text(f"""
    UPDATE images SET state = 'queued', lease_id = NULL, earlier_leases = {GAVE_BACK},
        attempts = attempts - CASE WHEN state = 'running' THEN 1 ELSE 0 END
    WHERE id = ANY(ARRAY(SELECT unnest(image_ids) FROM leases WHERE id = :lease))
        AND lease_id = :lease AND state IN ('queued', 'running')
""")

# Extends leases that have not ended.
RENEW = text("""
    UPDATE leases SET expires_at = now() + make_interval(secs => :seconds)
    WHERE id = ANY(:leases) AND ended_at IS NULL RETURNING id
""")

# Finds the images that leases still have to render.
WANTED = text("""
    SELECT leases.id AS lease_id, images.id AS image_id FROM leases
    JOIN images ON images.id = ANY(leases.image_ids) AND images.lease_id = leases.id
    WHERE leases.id = ANY(:leases) AND images.state IN ('queued', 'running')
""")

# Finds expired leases.
EXPIRED = text(f"""
    SELECT id FROM leases
    WHERE ended_at IS NULL AND expires_at < now()
        AND now() - pg_postmaster_start_time() > make_interval(secs => :grace) AND NOT {rests("rescue", "leases.id")}
    ORDER BY id LIMIT 100
""")

# Locks those of these leases that have expired; none that another sweep rescues now.
LOCK_EXPIRED = text("""
    SELECT id, image_ids FROM leases WHERE id = ANY(:leases) AND ended_at IS NULL AND expires_at < now()
    ORDER BY id FOR UPDATE SKIP LOCKED
""")

# Sends the images of expired leases back to wait, or fails them; then settles their jobs and ends the leases.
RESCUE = text(f"""
    WITH verdict AS (
        SELECT images.id, images.state = 'running' AND attempts >= :attempts AS is_last,
               CASE WHEN images.state = 'running' THEN workers.name END AS failed_by
        FROM images JOIN leases ON leases.id = images.lease_id LEFT JOIN workers ON workers.id = leases.worker_id
        WHERE images.id = ANY(:images) AND lease_id = ANY(:leases) AND images.state IN ('queued', 'running')),
    changed AS (
        UPDATE images SET
            state = CASE WHEN is_last THEN 'failed'::image_state ELSE 'queued'::image_state END,
            failed_by = {_appended("verdict.failed_by")},
            lease_id = CASE WHEN is_last THEN lease_id END,
            earlier_leases = CASE WHEN is_last THEN earlier_leases ELSE {GAVE_BACK} END,
            not_before = CASE WHEN state = 'running' AND NOT is_last THEN {BACKOFF} END,
            finished_at = CASE WHEN is_last THEN now() END,
            error_code = CASE WHEN state = 'running' THEN 'worker_lost' ELSE error_code END,
            error_message = CASE WHEN state = 'running' THEN :message ELSE error_message END
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

# Clears back-offs that have passed. Skips images that a cancel or a change of tier has locked, in another order.
END_BACKOFF = text("""
    UPDATE images SET not_before = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM images WHERE not_before <= now() FOR NO KEY UPDATE SKIP LOCKED))
""")
