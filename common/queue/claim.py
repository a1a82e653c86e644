"""Claims: how images pass from the queue through a worker's hands to storage. With `jobs.py`, every change of state.

    claim ──► start ──► publish      a lease takes a microbatch, starts it, makes its pictures visible
      └─────────┴─────► release      or gives back what it has not finished
                  └───► rescue       or dies, and the sweep takes its images back

A lease changes only images whose row names it: its id is the fence. A claimed image stays `queued` until its lease
starts; only then does the attempt count. An image whose started lease was lost is *suspect*: it may be what killed the
worker, so it is claimed alone from then on. Nothing here renders, stores or sends.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.enums import ImageState
from common.queue.jobs import SETTLE, lock_of_images
from common.recipes.recipe import Recipe
from common.storage import image_key

MAX_ATTEMPTS = 3
BACKOFF_S = 2.0  # before the second attempt; doubled for each further one, with jitter


@dataclass(frozen=True)
class Offer:
    """What a worker could render now. `capacity` is the images of one pipeline call, by model."""

    worker_id: UUID
    capacity: Mapping[str, int]
    resident: tuple[str, ...] = ()
    patience_s: float = 30  # a lane whose head waits longer may cost a resident model its place
    lower_tier: bool = False  # this once, the oldest of the lower tiers first: nothing starves


@dataclass(frozen=True)
class Image:
    """One image of a microbatch. The `index`-th seed of its recipe is its own."""

    id: UUID
    job_id: UUID
    index: int
    attempts: int
    recipe: Recipe
    request_id: str | None

    @property
    def seed(self) -> int:
        return self.recipe.seeds[self.index]


@dataclass(frozen=True)
class Microbatch:
    """The images that one lease holds, compatible with each other and so for one pipeline call.

    `suspect`: its one image was in a worker that died. Better store whatever else this worker holds before it starts.
    """

    lease_id: UUID
    model: str
    images: tuple[Image, ...]
    suspect: bool = False


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


def claim(connection: Connection, offer: Offer, lease_id: UUID, lease_s: float) -> Microbatch | None:
    """Take the best microbatch that the worker could render: None when nothing waits for it.

    Tier first, then models that are resident, then fair share among tenants, then age. Never waits for a lock.
    """
    parameters = {
        "models": list(offer.capacity),
        "capacities": list(offer.capacity.values()),
        "resident": list(offer.resident),
        "patience": offer.patience_s,
        "lower": offer.lower_tier,
        "lease": lease_id,
        "worker": offer.worker_id,
        "seconds": lease_s,
    }
    rows = connection.execute(CLAIM, parameters).all()
    if not rows:
        return None
    connection.execute(CHARGE, {"first": rows[0].first_tenant, "tenants": [row.tenant_id for row in rows]})
    return Microbatch(lease_id, rows[0].model, tuple(_image(row) for row in rows), rows[0].suspect)


def start(connection: Connection, microbatch: Microbatch) -> frozenset[UUID]:
    """Begin to render: counts the attempt, and says which images of the microbatch are still wanted of this lease."""
    lease = {"lease": microbatch.lease_id}
    if connection.execute(START_LEASE, lease).first() is None:
        return frozenset()
    ids = [image.id for image in microbatch.images]
    lock_of_images(connection, ids)
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
    lock_of_images(connection, image_ids)
    parameters = {
        "leases": [lease.id for lease in expired],
        "images": image_ids,
        "attempts": MAX_ATTEMPTS,
        "backoff": BACKOFF_S,
    }
    row = connection.execute(RESCUE, parameters).one()
    return Rescued(tuple(lease.id for lease in expired), row.images, tuple(row.ended_jobs or ()))


def ready(connection: Connection) -> int:
    """Make images claimable again whose back-off is over; how many."""
    return connection.execute(READY).rowcount


def leftovers(connection: Connection, grace_s: float, limit: int = 100) -> dict[UUID, list[str]]:
    """For leases that ended longer ago than that: the keys under which they may have stored what no image shows."""
    found: dict[UUID, list[str]] = {}
    for row in connection.execute(LEFTOVERS, {"grace": grace_s, "limit": limit}):
        keys = found.setdefault(row.lease_id, [])
        if row.job_id is not None:
            keys.append(image_key(row.job_id, row._mapping["index"], row.lease_id, row.format))
    return found


def cleaned(connection: Connection, lease_ids: Sequence[UUID]) -> None:
    """Note that nothing lies in storage any more that these leases stored and no image shows."""
    connection.execute(CLEANED, {"leases": list(lease_ids)})


def models_with_idle_workers(connection: Connection, beat_s: float) -> list[str]:
    """The models that have images waiting beside a worker that serves them, holds no lease and was heard of lately."""
    return list(connection.execute(WAKEABLE, {"lately": 3 * beat_s}).scalars())


def _lock(connection: Connection, lease_id: UUID) -> None:
    image_ids = connection.execute(LOCK_LEASE, {"lease": lease_id}).scalar()
    lock_of_images(connection, image_ids or [])


def _image(row: Row[Any]) -> Image:
    index = row._mapping["index"]  # Row.index is a method of tuples
    return Image(row.id, row.job_id, index, row.attempts, Recipe.model_validate(row.recipe), row.request_id)


# One statement each. WAITING is what the partial index `images_waiting_idx` holds. Suspects are few: as many as dead
# leases held, so to step over them keeps a claim flat. ANY(ARRAY()) keeps the planner from scanning the whole table.

WAITING = "images.state = 'queued' AND images.lease_id IS NULL AND images.not_before IS NULL"
SUSPECT = "images.error_code IS NOT DISTINCT FROM 'worker_lost'"
BACKOFF = "now() + make_interval(secs => :backoff * 2 ^ (images.attempts - 1) * (0.5 + random()))"

CLAIM = text(f"""
    WITH offer AS (
        SELECT * FROM unnest(cast(:models AS text[]), cast(:capacities AS int[])) AS offer(model, capacity)),
    clock AS (SELECT coalesce(max(served_from), 0) AS time FROM tenants),
    waiting AS MATERIALIZED (
        SELECT lanes.*, offer.capacity, head.id AS head, head.suspect, greatest(tenants.served, clock.time) AS share,
               CASE WHEN lanes.model = ANY(cast(:resident AS text[])) THEN 1
                    WHEN head.created_at < now() - make_interval(secs => :patience) THEN 0
                    ELSE 2 END AS preference
        FROM lanes JOIN offer USING (model) JOIN tenants ON tenants.id = lanes.tenant_id CROSS JOIN clock
        CROSS JOIN LATERAL (
            SELECT images.id, {SUSPECT} AS suspect, jobs.created_at FROM images JOIN jobs ON jobs.id = images.job_id
            WHERE images.lane_id = lanes.id AND {WAITING} ORDER BY images.id LIMIT 1) AS head
        WHERE lanes.open > 0 AND NOT lanes.closed),
    turn AS (SELECT id, :lower AND tier > (SELECT min(tier) FROM waiting) AS is_lower FROM waiting),
    first AS MATERIALIZED (
        SELECT waiting.* FROM waiting JOIN turn USING (id)
        ORDER BY is_lower DESC, CASE WHEN is_lower THEN head END, tier, preference, share, head LIMIT 1),
    company AS MATERIALIZED (
        SELECT waiting.id, first.capacity FROM waiting JOIN first USING (compatibility)
        ORDER BY waiting.id = first.id DESC, waiting.tier, waiting.share, waiting.head),
    alone AS MATERIALIZED (
        SELECT images.id FROM images JOIN first ON images.id = first.head
        WHERE first.suspect AND {WAITING} FOR NO KEY UPDATE OF images SKIP LOCKED),
    picked AS MATERIALIZED (
        SELECT id FROM alone
        UNION ALL
        SELECT image.id FROM company CROSS JOIN LATERAL (
            SELECT images.id FROM images WHERE images.lane_id = company.id AND {WAITING} AND NOT {SUSPECT}
            ORDER BY images.id LIMIT company.capacity FOR NO KEY UPDATE SKIP LOCKED) AS image
        WHERE NOT EXISTS (SELECT FROM alone)
        LIMIT (SELECT capacity FROM first)),
    taken AS (
        UPDATE images SET lease_id = :lease WHERE id = ANY(ARRAY(SELECT id FROM picked))
        RETURNING images.id, images.job_id, images.lane_id, images.index, images.attempts, {SUSPECT} AS suspect),
    lease AS (
        INSERT INTO leases (id, worker_id, image_ids, expires_at)
        SELECT :lease, :worker, array_agg(id ORDER BY id), now() + make_interval(secs => :seconds)
        FROM taken HAVING count(*) > 0)
    SELECT taken.*, jobs.recipe, jobs.request_id, jobs.tenant_id, first.model, first.tenant_id AS first_tenant
    FROM taken JOIN jobs ON jobs.id = taken.job_id CROSS JOIN first ORDER BY taken.id
""")

# Start-time fair queueing: a tenant's clock runs on by images ÷ weight; one that comes back starts at today's time.
CHARGE = text("""
    WITH clock AS (SELECT max(served_from) AS time FROM tenants),
    charge AS (
        SELECT id, count(*) AS images FROM unnest(cast(:tenants AS uuid[])) AS charged(id) GROUP BY id),
    locked AS MATERIALIZED (
        SELECT id FROM tenants WHERE id IN (SELECT id FROM charge) ORDER BY id FOR NO KEY UPDATE)
    UPDATE tenants SET
        served_from = CASE WHEN tenants.id = :first THEN greatest(served, clock.time) ELSE served_from END,
        served = greatest(served, clock.time) + charge.images / weight
    FROM charge JOIN locked USING (id) CROSS JOIN clock WHERE tenants.id = charge.id
""")

LOCK_LEASE = text("SELECT image_ids FROM leases WHERE id = :lease FOR NO KEY UPDATE")

# Unclean unless all of it is stored: also again, when a revived worker comes late. What never started stored nothing.
END_LEASE = text("""
    UPDATE leases SET
        ended_at = coalesce(ended_at, now()), outcome = coalesce(outcome, cast(:outcome AS lease_outcome)),
        unclean = started_at IS NOT NULL AND EXISTS (
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
        UPDATE leases SET ended_at = now(), outcome = 'lost', unclean = started_at IS NOT NULL
        WHERE id = ANY(:leases))
    SELECT (SELECT count(*) FROM changed) AS images,
           (SELECT array_agg(id) FROM settled WHERE finished_at IS NOT NULL) AS ended_jobs
""")

# Whoever cancels or moves jobs holds images too, in another order: what they hold is ready at the next sweep.
READY = text("""
    UPDATE images SET not_before = NULL
    WHERE id = ANY(ARRAY(SELECT id FROM images WHERE not_before <= now() FOR NO KEY UPDATE SKIP LOCKED))
""")

LEFTOVERS = text("""
    SELECT lease.id AS lease_id, images.job_id, images.index, jobs.recipe ->> 'format' AS format
    FROM (SELECT id, image_ids FROM leases WHERE unclean AND ended_at < now() - make_interval(secs => :grace)
          ORDER BY ended_at LIMIT :limit) AS lease
    LEFT JOIN images ON images.id = ANY(lease.image_ids)
        AND NOT (images.state = 'stored' AND images.lease_id = lease.id)
    LEFT JOIN jobs ON jobs.id = images.job_id
""")

CLEANED = text("UPDATE leases SET unclean = false WHERE id = ANY(:leases) AND ended_at IS NOT NULL")

WAKEABLE = text(f"""
    SELECT DISTINCT lanes.model FROM lanes JOIN workers ON lanes.model = ANY(workers.models)
    WHERE lanes.open > 0 AND NOT lanes.closed AND workers.state IN ('starting', 'ready')
        AND workers.seen_at > now() - make_interval(secs => :lately)
        AND NOT EXISTS (SELECT FROM leases WHERE leases.worker_id = workers.id AND leases.ended_at IS NULL)
        AND EXISTS (SELECT FROM images WHERE images.lane_id = lanes.id AND {WAITING})
""")
