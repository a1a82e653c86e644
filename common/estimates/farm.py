"""What an estimate needs to know of the farm: what it published lately, its workers, and what waits. Reads only.

Bounded, however large the farm is: the newest RECENT_LEASES, as many pictures of models that these lack, the workers
that are there, MOST_LANES of those that wait. One process reads it at most once in MAX_AGE_S.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from threading import Lock
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, Row, text

from common.enums import Tier
from common.estimates.forecast import Forecast, Waiting, Worker, forecast
from common.estimates.speed import Kind, Microbatch, Quantile, Speed
from common.queue.claim import WAITING
from common.queue.lanes import UNCOUNTED

RECENT_LEASES = 500
OLDER_LANES, OLDER_PICTURES = 2000, 100  # that are searched for a model that the recent leases lack
MOST_LANES = 300
RECENT_BATCHES = 20
MAX_AGE_S = 3.0
UNTIL_CLAIMED_S = 0.2  # from the COMMIT to the claim: a message wakes a worker
FIRST_CHUNK_S = 0.5  # of an expansion: after it the first jobs can be claimed


@dataclass(frozen=True)
class Preparation:
    """How long control workers took for batches lately, in seconds: to check `check_s` and, for each prompt, as much
    more; to expand, for each image; and to notice that the last image has ended.
    """

    check_s: float = 0.5
    prompt_s: float = 0.0
    image_s: float = 0.0
    end_s: float = 1.5

    def until_first_s(self, prompts: float, images: float) -> float:
        """Until the first images can be claimed."""
        return self._check(prompts) + min(FIRST_CHUNK_S, self.image_s * images) + UNTIL_CLAIMED_S

    def until_expanded_s(self, prompts: float, images: float) -> float:
        return self._check(prompts) + self.image_s * images

    def _check(self, prompts: float) -> float:
        return self.check_s + self.prompt_s * prompts


@dataclass(frozen=True)
class Farm:
    """The farm at one moment. `lanes`: the ids of those that are looked at; `has_more`: there are others."""

    speed: Speed
    workers: Sequence[Worker]
    waiting: Sequence[Waiting]
    preparation: Preparation
    lanes: Mapping[UUID, Sequence[int]]  # by batch
    has_more: bool
    _forecasts: dict[Quantile, Forecast] = field(default_factory=dict)

    def forecast(self, quantile: Quantile, more: Sequence[Waiting] = ()) -> Forecast:
        """When what waits ends; `more` would be submitted now."""
        if more:
            return forecast([*self.waiting, *more], self.workers, self.speed, quantile)
        if quantile not in self._forecasts:
            self._forecasts[quantile] = forecast(self.waiting, self.workers, self.speed, quantile)
        return self._forecasts[quantile]

    def serves(self, model: str) -> bool:
        return any(model in worker.models for worker in self.workers)

    def knows(self, kind: Kind) -> bool:
        return self.speed.seconds(kind, 1, Quantile.P50) is not None


def read_farm(connection: Connection, models: Sequence[str] = ()) -> Farm:
    """The farm now. `models`: those that it must know besides what waits, if anything is known of them."""
    workers = connection.execute(WORKERS).all()
    queue = connection.execute(QUEUE, {"limit": MOST_LANES + 1}).all()
    held = connection.execute(HELD).all()
    published = list(connection.execute(PUBLISHED, {"limit": RECENT_LEASES}))
    missing = {*models, *(row.model for row in queue)} - {row.model for row in published}
    if missing:
        older = {"models": sorted(missing), "lanes": OLDER_LANES, "limit": OLDER_PICTURES}
        published += connection.execute(OLDER, older)
    taking = [row for row in workers if row.takes_work]
    speed = _speed(published, workers, taking)
    lanes: dict[UUID, list[int]] = {}
    for row in [*queue[:MOST_LANES], *held]:
        if row.batch_id:
            lanes.setdefault(row.batch_id, []).append(row.id)
    return Farm(
        speed,
        [Worker(frozenset(row.models), frozenset(row.resident)) for row in taking],
        [*map(_waiting, queue[:MOST_LANES]), *_held(held, speed)],
        _preparation(connection.execute(PREPARATION).all()),
        lanes,
        len(queue) > MOST_LANES,
    )


_known: WeakKeyDictionary[Engine, tuple[float, Farm]] = WeakKeyDictionary()
_reading = Lock()


def recent_farm(connection: Connection) -> Farm:
    """The farm as it was within the last MAX_AGE_S, or somewhat longer ago while another thread reads it."""
    read_at, farm = _known.get(connection.engine, (0.0, None))
    if farm and time.monotonic() - read_at < MAX_AGE_S:
        return farm
    if not _reading.acquire(blocking=farm is None):
        assert farm
        return farm
    try:
        farm = read_farm(connection)
        _known[connection.engine] = time.monotonic(), farm
        return farm
    finally:
        _reading.release()


def held_key(lane_id: int) -> tuple[str, int]:
    """The key of what workers hold of a lane. What waits in it has the id of the lane as its key."""
    return "held", lane_id


def _speed(published: Sequence[Row[Any]], workers: Sequence[Row[Any]], taking: Sequence[Row[Any]]) -> Speed:
    present, classes = {row.id for row in taking}, {row.class_text for row in taking}
    class_of = {row.id: row.class_text for row in workers}
    microbatches = [
        Microbatch(
            Kind(row.model, row.compatibility, row.work),
            row.images,
            row.seconds,
            row.latency,
            row.render_s,
            row.is_steady,
            0 if row.worker_id in present else 1 if class_of.get(row.worker_id) in classes else 2,
        )
        for row in published
    ]
    image_s, capacity = dict[str, list[float]](), dict[str, int]()
    for row in taking:
        for model, seconds in row.seconds_per_image.items():
            image_s.setdefault(model, []).append(seconds)
        for model, images in row.capacity.items():
            capacity[model] = min(images, capacity.get(model, images))
    image_medians = {model: median(known) for model, known in image_s.items()}
    return Speed(microbatches, image_medians, _loads(workers, classes), capacity)


def _loads(workers: Sequence[Row[Any]], classes: Collection[str]) -> dict[str, Sequence[float]]:
    """By model the seconds of its last loads: on a class that is there before others, and of processes that had their
    libraries imported before those that had not.
    """
    found: dict[str, dict[tuple[bool, bool], list[float]]] = {}
    for row in workers:
        for model, load in row.loads.items():
            rank = row.class_text not in classes, bool(load["is_first"])
            found.setdefault(model, {}).setdefault(rank, []).append(load["seconds"])
    return {model: ranked[min(ranked)] for model, ranked in found.items()}


def _waiting(row: Row[Any]) -> Waiting:
    kind = Kind(row.model, row.compatibility, row.work)
    return Waiting(row.id, Tier(row.tier), row.tenant_id, kind, row.images, row.head, row.weight)


def _held(rows: Sequence[Row[Any]], speed: Speed) -> list[Waiting]:
    found = []
    for row in rows:
        kind = Kind(row.model, row.compatibility, row.work)
        each = max(round(row.images / row.workers), 1)
        usual = speed.seconds(kind, each, Quantile.P50)
        done = row.images * min(row.running_s / usual, 0.95) if usual else 0.0
        key = held_key(row.id)
        found.append(
            Waiting(key, Tier(row.tier), row.tenant_id, kind, row.images, row.head, held_by=row.workers, done=done)
        )
    return found


def _preparation(rows: Sequence[Row[Any]]) -> Preparation:
    """By batches that were prepared lately: the shortest check has what each takes, the others tell of a prompt."""
    default = Preparation()
    if not rows:
        return default
    check_s = min(row.check_s for row in rows)
    ends = [row.end_s for row in rows if row.end_s is not None]
    return Preparation(
        check_s,
        median((row.check_s - check_s) / row.prompts for row in rows),
        median(row.expand_s / row.images for row in rows),
        median(ends) if ends else default.end_s,
    )


WORK = "(recipe ->> 'steps')::float * (recipe ->> 'width')::float * (recipe ->> 'height')::float"

# The workers that are there, and of those that have stopped the last ones, who tell how long a load takes.
WORKERS = text("""
    SELECT id, models, resident, seconds_per_image, capacity, loads, class::text AS class_text,
           state IN ('starting', 'ready') AND NOT EXISTS (
               SELECT FROM quarantines WHERE quarantines.name = workers.name) AS takes_work
    FROM (SELECT * FROM workers WHERE state <> 'stopped'
          UNION ALL (SELECT * FROM workers WHERE state = 'stopped' ORDER BY seen_at DESC LIMIT 50)) AS workers
    ORDER BY takes_work DESC, seen_at DESC
""")

# What a lease says of the speed of its worker: leases(id, worker_id, image_id, images, claimed_at, started_at,
# ended_at, outcome). The time before the publication of the one before is that one's.
MEASURED = f"""
    timed AS (
        SELECT *, lag(ended_at) OVER (PARTITION BY worker_id ORDER BY ended_at) AS previous_end FROM chosen
        WHERE ended_at IS NOT NULL AND started_at IS NOT NULL)
    SELECT timed.worker_id, lanes.model, lanes.compatibility, jobs.recipe_work AS work, timed.images,
           extract(epoch FROM timed.ended_at - greatest(previous_end, timed.started_at))::float AS seconds,
           extract(epoch FROM timed.ended_at - timed.started_at)::float AS latency,
           images.render_ms / 1000.0::float AS render_s, coalesce(previous_end >= timed.claimed_at, false) AS is_steady
    FROM timed JOIN images ON images.id = timed.image_id AND images.lease_id = timed.id
    JOIN lanes ON lanes.id = images.lane_id
    CROSS JOIN LATERAL (SELECT {WORK} AS recipe_work FROM jobs WHERE jobs.id = images.job_id) AS jobs
    WHERE timed.outcome = 'published' AND images.render_ms IS NOT NULL AND images.state IN ('stored', 'flagged')
    ORDER BY timed.ended_at DESC"""
CHOSEN = """
    SELECT id, worker_id, image_ids[1] AS image_id, cardinality(image_ids) AS images, claimed_at, started_at, ended_at,
           outcome FROM leases"""

# The newest leases.
PUBLISHED = text(f"WITH chosen AS MATERIALIZED ({CHOSEN} ORDER BY id DESC LIMIT :limit), {MEASURED}")

# Those of the last pictures of models that these lack.
OLDER = text(f"""
    WITH last_lanes AS MATERIALIZED (
        SELECT id FROM (SELECT id, model FROM lanes ORDER BY id DESC LIMIT :lanes) AS newest
        WHERE model = ANY(:models) ORDER BY id DESC LIMIT 10),
    last_leases AS MATERIALIZED (
        SELECT DISTINCT image.lease_id FROM last_lanes CROSS JOIN LATERAL (
            SELECT lease_id FROM images WHERE images.lane_id = last_lanes.id AND images.state = 'stored'
            ORDER BY finished_at DESC LIMIT :limit) AS image),
    chosen AS MATERIALIZED ({CHOSEN} WHERE id = ANY(ARRAY(SELECT lease_id FROM last_leases))),
    {MEASURED}
""")

# What waits, by lane: what is not claimed, and what a batch that is still expanded will add. `open` is never too low,
# so its index finds the lanes.
QUEUE = text(f"""
    WITH taken AS MATERIALIZED (
        SELECT images.lane_id, count(*) AS images FROM leases CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
        JOIN images ON images.id = held.id AND images.lease_id = leases.id AND images.state IN ('queued', 'running')
        WHERE leases.ended_at IS NULL GROUP BY images.lane_id),
    open_lanes AS MATERIALIZED (
        SELECT lanes.*, tenants.weight,
               greatest(lanes.open - coalesce(uncounted.ended, 0) - coalesce(taken.images, 0), 0) AS unclaimed
        FROM lanes JOIN tenants ON tenants.id = lanes.tenant_id LEFT JOIN taken ON taken.lane_id = lanes.id
        LEFT JOIN ({UNCOUNTED}) AS uncounted ON uncounted.lane_id = lanes.id
        WHERE lanes.open > 0 AND NOT lanes.closed AND tenants.suspended_at IS NULL
        ORDER BY lanes.tier, lanes.id LIMIT :limit),
    counted AS (
        SELECT open_lanes.*, unclaimed + coalesce(greatest(batches.counted - batches.images, 0) / count(*) OVER (
                   PARTITION BY open_lanes.batch_id), 0) AS images
        FROM open_lanes
        LEFT JOIN batches ON batches.id = batch_id AND batches.expanded_at IS NULL AND batches.checked_at IS NOT NULL)
    SELECT counted.id, tenant_id, tier, counted.model, batch_id, weight, compatibility, images::bigint AS images,
           head.id AS head, head.work
    FROM counted CROSS JOIN LATERAL (
        SELECT images.id, {WORK} AS work FROM images JOIN jobs ON jobs.id = images.job_id
        WHERE images.lane_id = counted.id AND {WAITING} ORDER BY images.id LIMIT 1) AS head
    WHERE images > 0 ORDER BY tier, head.id
""")

# What workers hold, by lane: how many of them, and for how long they have rendered it.
HELD = text(f"""
    SELECT lanes.id, lanes.tenant_id, lanes.tier, lanes.model, lanes.batch_id, lanes.compatibility,
           count(*) AS images, count(DISTINCT leases.worker_id) AS workers, min(images.id::text)::uuid AS head,
           avg({WORK})::float AS work,
           avg(coalesce(extract(epoch FROM now() - leases.started_at), 0))::float AS running_s
    FROM leases CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
    JOIN images ON images.id = held.id AND images.lease_id = leases.id AND images.state IN ('queued', 'running')
    JOIN lanes ON lanes.id = images.lane_id JOIN jobs ON jobs.id = images.job_id
    WHERE leases.ended_at IS NULL GROUP BY lanes.id
""")

# How long control workers took for the last batches, and how long after its last picture each ended.
PREPARATION = text(f"""
    SELECT prompts, images, extract(epoch FROM checked_at - created_at)::float AS check_s,
           extract(epoch FROM expanded_at - checked_at)::float AS expand_s,
           CASE WHEN cancelled_at IS NULL THEN extract(epoch FROM finished_at - last.ended_at)::float END AS end_s
    FROM (SELECT * FROM batches ORDER BY id DESC LIMIT {RECENT_BATCHES}) AS batches LEFT JOIN LATERAL (
        SELECT max(image.finished_at) AS ended_at FROM lanes CROSS JOIN LATERAL (
            SELECT images.finished_at FROM images WHERE images.lane_id = lanes.id AND images.state = 'stored'
            ORDER BY images.finished_at DESC LIMIT 1) AS image
        WHERE lanes.batch_id = batches.id) AS last ON true
    WHERE expanded_at IS NOT NULL AND parent_id IS NULL AND prompts > 0 AND images > 0
""")
