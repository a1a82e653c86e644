"""Claims: the choice of the next microbatch for a worker. What happens to it then is in `leases`.

A claim takes waiting images that one pipeline call can render together and gives them a lease. It chooses by tier, then
by models that are resident, then by fair share among tenants, then by age; when it is the turn of the lower tiers, by
fair share in such turns, then by age. An image whose started lease was lost is
*suspect*: it may have killed the worker, so it is claimed alone from then on. So is one of a microbatch that failed for
an unforeseen reason. A worker that failed at an image leaves it to the others that can render it, while there are any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from common.db import CODE, id_of_time
from common.queue import charges
from common.queue.charges import Charge, Charges
from common.recipes.recipe import Recipe

OUT_OF_ORDER_S = 5.0  # by which the id of an image may be older than those that were committed before it


@dataclass(frozen=True)
class Offer:
    """What a worker can render now.

    `capacity`: images of one pipeline call, by model. `patience_s`: a job that waits longer comes before those of
    resident models. `lower_tier`: serve a lower tier this time, so that none starves. `name`:
    the worker's; images that it failed are left to other workers, as long as one is heard of every `alive_s` seconds.
    """

    worker_id: UUID
    capacity: Mapping[str, int]
    name: str = ""
    alive_s: float = 15
    resident: tuple[str, ...] = ()
    patience_s: float = 30
    lower_tier: bool = False


@dataclass(frozen=True)
class Memory:
    """What a process remembers of its last claims; nothing is right too.

    `unpaid`: charges that are not collected yet. `heads`: by lane, the id from which on to read it, found by an earlier
    claim. What was given back before it is not seen.
    """

    unpaid: Charges = field(default_factory=dict)
    heads: Mapping[int, UUID] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """One image of a microbatch. It has the seed at `index` of its recipe."""

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
    """The images of one lease, which one pipeline call can render together.

    `suspect`: its only image was in a worker that died, or in a microbatch that failed for an unforeseen reason. Store
    what else the worker holds before this one starts. `unreadable`: by id, images of the lease whose recipe this code
    cannot read. `charges`: what its tenants owe for it. `heads`: by lane, where the next
    claim can begin to read.
    """

    lease_id: UUID
    model: str
    images: tuple[Image, ...]
    suspect: bool = False
    unreadable: Mapping[UUID, Exception] = field(default_factory=dict)
    charges: Charges = field(default_factory=dict)
    heads: Mapping[int, UUID] = field(default_factory=dict)


def claim(
    connection: Connection, offer: Offer, lease_id: UUID, lease_s: float, memory: Memory | None = None
) -> Microbatch | None:
    """Give the next images that the worker can render to a new lease of `lease_s` seconds; None when none waits.

    Leaves alone what needs newer code than this. The caller collects the charges after the COMMIT.

    Skips locked images and locks nothing else, so a claim waits for nobody.
    """
    rows = connection.execute(CLAIM, parameters_of(offer, lease_id, lease_s, memory or Memory())).all()
    if not rows:
        return None
    images, unreadable = list[Image](), dict[UUID, Exception]()
    for row in rows:
        try:
            images.append(_image(row))
        except Exception as error:
            unreadable[row.id] = error
    heads = {lane: _begin_reading(UUID(head), batch is not None) for lane, head, batch in rows[0].heads}
    return Microbatch(lease_id, rows[0].model, tuple(images), rows[0].suspect, unreadable, _charges(rows), heads)


def parameters_of(offer: Offer, lease_id: UUID, lease_s: float, memory: Memory) -> dict[str, Any]:
    """The parameters of CLAIM."""
    clock, lower_clock = charges.latest_starts(memory.unpaid)
    return {
        "models": list(offer.capacity),
        "capacities": list(offer.capacity.values()),
        "resident": list(offer.resident),
        "patience": offer.patience_s,
        "lower": offer.lower_tier,
        "lease": lease_id,
        "worker": offer.worker_id,
        "name": offer.name,
        "alive_s": offer.alive_s,
        "seconds": lease_s,
        "code": CODE,
        "clock": clock,
        "lower_clock": lower_clock,
        **charges.by_tenant(memory.unpaid),
        "lanes": list(memory.heads),
        "heads": list(memory.heads.values()),
        "full": not memory.heads,
    }


def models_with_idle_workers(connection: Connection, beat_s: float) -> list[str]:
    """The models of which images wait although a live worker that may claim them holds no lease."""
    return list(connection.execute(IDLE_MODELS, {"alive_s": 3 * beat_s}).scalars())


def _charges(rows: Sequence[Row[Any]]) -> Charges:
    owed: Charges = {}
    for row in rows:
        lower = Charge(row.lower_base, 1, row.lower_start) if row.is_lower else None
        owed = charges.add(owed, {row.tenant_id: Charge(row.base, 1, row.start, lower)})
    return owed


def _begin_reading(head: UUID, is_of_batch: bool) -> UUID:
    """Where to read from when `head` was the first image that waited. Only the images of a batch come in order."""
    return head if is_of_batch else id_of_time((head.int >> 80) / 1000 - OUT_OF_ORDER_S)


def _image(row: Row[Any]) -> Image:
    index = row._mapping["index"]  # Row.index is a method of tuples
    return Image(row.id, row.job_id, index, row.attempts, Recipe.model_validate(row.recipe), row.request_id)


# The condition of the partial index `images_waiting_idx`.
WAITING = "images.state = 'queued' AND images.lease_id IS NULL AND images.not_before IS NULL"
FIRST = UUID(int=0)  # before any image
# Suspects are few, so stepping over them does not slow a claim down.
SUSPECT = "(images.failed_by IS NOT NULL OR coalesce(images.error_code IN ('worker_lost', 'internal_error'), false))"
# The workers that may claim.
ABLE = """able AS (
        SELECT name, models FROM workers
        WHERE state = 'ready' AND seen_at > now() - make_interval(secs => :alive_s)
            AND NOT EXISTS (SELECT FROM quarantines WHERE quarantines.name = workers.name))"""


def _avoids(name: str) -> str:
    """The condition that the worker of this name (SQL) leaves an image to those of ABLE. Asked for suspects only."""
    return f"""(coalesce({name} = ANY(images.failed_by), false) AND EXISTS (
        SELECT FROM able WHERE lanes.model = ANY(able.models) AND NOT able.name = ANY(images.failed_by)))"""


# Chooses the first lane and those that can share its pipeline call, locks images, and gives them to a new lease.
# ANY(ARRAY()) keeps the planner from scanning the whole table, and so do the pairs of a lane and an id: by `id` alone
# it reads the primary key, over everything that does not wait; beside an equality it reads a lane from its beginning.
CLAIM = text(f"""
    WITH offer AS (
        SELECT * FROM unnest(cast(:models AS text[]), cast(:capacities AS int[])) AS offer(model, capacity)),
    {ABLE},
    known AS (
        SELECT * FROM unnest(cast(:lanes AS bigint[]), cast(:heads AS uuid[])) AS known(lane_id, head)),
    unpaid AS (
        SELECT * FROM unnest(
            cast(:tenants AS uuid[]), cast(:bases AS float8[]), cast(:owed AS int[]),
            cast(:lower_bases AS float8[]), cast(:lower_owed AS int[])
        ) AS unpaid(tenant_id, base, images, lower_base, lower_images)),
    tenant AS MATERIALIZED (
        SELECT id AS tenant_id, weight, virtual_time, virtual_start, lower_time, lower_start, suspended_at
        FROM tenants),
    clock AS (
        SELECT greatest(max(virtual_start), :clock) AS time, greatest(max(lower_start), :lower_clock) AS lower_time
        FROM tenant),
    waiting AS MATERIALIZED (
        SELECT lanes.*, offer.capacity, head.id AS head, head.suspect, owner.base, owner.base + owner.owed AS share,
               lower.base AS lower_base, lower.base + debt.lower_owed AS lower_share,
               CASE WHEN lanes.model = ANY(cast(:resident AS text[])) THEN 1
                    WHEN jobs.created_at < now() - make_interval(secs => :patience) THEN 0
                    ELSE 2 END AS preference
        FROM lanes JOIN offer USING (model) JOIN tenant USING (tenant_id) CROSS JOIN clock
        LEFT JOIN known ON known.lane_id = lanes.id LEFT JOIN unpaid ON unpaid.tenant_id = lanes.tenant_id
        CROSS JOIN LATERAL (
            SELECT coalesce(unpaid.images / weight, 0) AS owed,
                   coalesce(unpaid.lower_images / weight, 0) AS lower_owed) AS debt
        CROSS JOIN LATERAL (
            SELECT owed, greatest(virtual_time, unpaid.base, clock.time - owed) AS base) AS owner
        CROSS JOIN LATERAL (
            SELECT greatest(tenant.lower_time, unpaid.lower_base, clock.lower_time - lower_owed) AS base) AS lower
        CROSS JOIN LATERAL (
            SELECT images.id, images.job_id, {SUSPECT} AS suspect FROM images
            WHERE (images.lane_id, images.id) >= (lanes.id, coalesce(known.head, '{FIRST}'))
                AND images.lane_id <= lanes.id AND {WAITING}
                AND NOT {_avoids(":name")}
            ORDER BY images.lane_id, images.id LIMIT 1) AS head
        JOIN jobs ON jobs.id = head.job_id
        WHERE lanes.open > 0 AND NOT lanes.closed AND lanes.needs_code <= :code AND tenant.suspended_at IS NULL),
    turn AS (SELECT id, :lower AND tier > (SELECT min(tier) FROM waiting) AS is_lower FROM waiting),
    first AS MATERIALIZED (
        SELECT waiting.*, is_lower FROM waiting JOIN turn USING (id)
        ORDER BY is_lower DESC, CASE WHEN is_lower THEN lower_share END, CASE WHEN is_lower THEN head END,
            tier, preference, share, head LIMIT 1),
    batch_mates AS MATERIALIZED (
        SELECT waiting.id, waiting.head, first.capacity FROM waiting JOIN first USING (compatibility)
        ORDER BY waiting.id = first.id DESC, waiting.tier, waiting.share, waiting.head),
    suspect_alone AS MATERIALIZED (
        SELECT images.id FROM images JOIN first ON images.id = first.head
        WHERE first.suspect AND {WAITING} FOR NO KEY UPDATE OF images SKIP LOCKED),
    selected AS MATERIALIZED (
        SELECT id FROM suspect_alone
        UNION ALL
        SELECT image.id FROM batch_mates CROSS JOIN LATERAL (
            SELECT images.id FROM images
            WHERE (images.lane_id, images.id) >= (batch_mates.id, batch_mates.head)
                AND images.lane_id <= batch_mates.id AND {WAITING} AND NOT {SUSPECT}
            ORDER BY images.lane_id, images.id LIMIT batch_mates.capacity FOR NO KEY UPDATE SKIP LOCKED) AS image
        WHERE NOT EXISTS (SELECT FROM suspect_alone)
        LIMIT (SELECT capacity FROM first)),
    taken AS (
        UPDATE images SET lease_id = :lease WHERE id = ANY(ARRAY(SELECT id FROM selected))
        RETURNING images.id, images.job_id, images.lane_id, images.index, images.attempts, {SUSPECT} AS suspect),
    lease AS (
        INSERT INTO leases (id, worker_id, image_ids, expires_at)
        SELECT :lease, :worker, array_agg(id ORDER BY id), now() + make_interval(secs => :seconds)
        FROM taken HAVING count(*) > 0)
    SELECT taken.*, jobs.recipe, jobs.request_id, waiting.tenant_id, waiting.model, waiting.base,
           CASE WHEN waiting.tenant_id = first.tenant_id THEN first.share END AS start,
           waiting.lower_base, first.is_lower AND waiting.tier >= first.tier AS is_lower,
           CASE WHEN waiting.tenant_id = first.tenant_id THEN first.lower_share END AS lower_start,
           CASE WHEN row_number() OVER (ORDER BY taken.id) = 1 THEN (
               SELECT json_agg(json_build_array(id, head, batch_id)) FROM waiting
               WHERE :full OR id IN (SELECT lane_id FROM taken))
           END AS heads
    FROM taken JOIN jobs ON jobs.id = taken.job_id JOIN waiting ON waiting.id = taken.lane_id CROSS JOIN first
    ORDER BY taken.id
""")

# Finds models with waiting images and an idle worker.
IDLE_MODELS = text(f"""
    WITH {ABLE}
    SELECT DISTINCT lanes.model FROM lanes JOIN workers ON lanes.model = ANY(workers.models)
    JOIN tenants ON tenants.id = lanes.tenant_id AND tenants.suspended_at IS NULL
    WHERE lanes.open > 0 AND NOT lanes.closed AND workers.state IN ('starting', 'ready')
        AND workers.seen_at > now() - make_interval(secs => :alive_s)
        AND NOT EXISTS (SELECT FROM quarantines WHERE quarantines.name = workers.name)
        AND NOT EXISTS (SELECT FROM leases WHERE leases.worker_id = workers.id AND leases.ended_at IS NULL)
        AND EXISTS (
            SELECT FROM images WHERE images.lane_id = lanes.id AND {WAITING} AND NOT {_avoids("workers.name")})
""")
