"""The counters that pages and metrics show, by model and tier: what waits, what runs, what ended. All tenants as one.

    lanes ──(once a minute)──► lane_samples        a chart shows the differences between samples

Cheap whatever the backlog: lanes hold the counts, and only leases that are open or just ended are read. Claims and
publications know nothing of samples. Any control worker takes them; of several the first one of a minute counts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from common.db import id_of_time
from common.enums import Tier
from common.queue.lanes import EXACT

LONGEST_LEASE_S = 900  # a lease that ended in the last minute was claimed no longer ago than this
KEPT_DAYS = 8
RECENT_MINUTES = 15


@dataclass(frozen=True)
class Span:
    """The minutes that a chart shows, and those of one step."""

    minutes: int
    step: int


HOUR = Span(60, 1)
DAY = Span(24 * 60, 15)


@dataclass(frozen=True)
class Point:
    """How many images ended in the step that ends at this moment, by state."""

    at: datetime
    stored: int
    flagged: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Tally:
    """How many images of a model and tier ended recently, by state."""

    model: str
    tier: Tier
    stored: int
    flagged: int
    failed: int
    cancelled: int


def read_backlog(connection: Connection) -> Sequence[Row[Any]]:
    """Rows of model, tier, waiting, running, oldest_s (null: nothing waits), images_per_minute.

    Images of a paused or cancelled batch, and of a suspended tenant, do not count as waiting.
    """
    return connection.execute(BACKLOG, {"since": id_of_time(time.time() - LONGEST_LEASE_S)}).all()


def take_sample(connection: Connection) -> None:
    """Take the sample of this minute if there is none yet, and delete old ones."""
    if connection.execute(TAKE_SAMPLE).rowcount:
        connection.execute(DELETE_OLD_SAMPLES, {"days": KEPT_DAYS})


def read_chart(connection: Connection, span: Span) -> Sequence[Point]:
    """Oldest first; the last step has not ended yet."""
    return [Point(**row._mapping) for row in connection.execute(CHART, vars(span))]


def read_tallies(connection: Connection, minutes: int = RECENT_MINUTES) -> Sequence[Tally]:
    """Only models and tiers of which an image ended in so many minutes."""
    rows = connection.execute(TALLIES, {"minutes": minutes})
    return [Tally(**{**row._mapping, "tier": Tier(row.tier)}) for row in rows]


# Per lane what is open and since when its first image waits, per lease what runs and was stored; summed up.
BACKLOG = text(f"""
    WITH facts AS (
        SELECT model, tier, open, 0 AS running, 0 AS stored, 0 AS taken, head.created_at
        FROM {EXACT} AS lanes JOIN tenants ON tenants.id = lanes.tenant_id LEFT JOIN LATERAL (
            SELECT jobs.created_at FROM images JOIN jobs ON jobs.id = images.job_id
            WHERE images.lane_id = lanes.id AND images.state = 'queued' AND images.lease_id IS NULL
                AND images.not_before IS NULL
            ORDER BY images.id LIMIT 1) AS head ON true
        WHERE lanes.open > 0 AND NOT lanes.closed AND tenants.suspended_at IS NULL
        UNION ALL
        SELECT model, tier, 0, (images.state = 'running')::int,
               (images.state = 'stored' AND images.finished_at > now() - interval '1 minute')::int,
               (images.state = 'running' AND NOT lanes.closed AND tenants.suspended_at IS NULL)::int, NULL
        FROM leases CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
        JOIN images ON images.id = held.id AND images.lease_id = leases.id
        JOIN lanes ON lanes.id = images.lane_id JOIN tenants ON tenants.id = lanes.tenant_id
        WHERE leases.ended_at IS NULL OR (leases.id > :since AND leases.ended_at > now() - interval '1 minute'))
    SELECT model, tier, greatest(sum(open) - sum(taken), 0)::bigint AS waiting, sum(running)::bigint AS running,
           extract(epoch FROM now() - min(created_at))::float AS oldest_s, sum(stored)::bigint AS images_per_minute
    FROM facts GROUP BY model, tier ORDER BY model, tier
""")

# Copies the counters of all lanes, summed by model and tier.
TAKE_SAMPLE = text(f"""
    INSERT INTO lane_samples (minute, model, tier, stored, flagged, failed, cancelled)
    SELECT date_trunc('minute', now()), model, tier, sum(stored), sum(flagged), sum(failed), sum(cancelled)
    FROM {EXACT} AS lanes WHERE NOT EXISTS (SELECT FROM lane_samples WHERE minute = date_trunc('minute', now()))
    GROUP BY model, tier
    ON CONFLICT DO NOTHING
""")

# Deletes the samples that no chart needs.
DELETE_OLD_SAMPLES = text("DELETE FROM lane_samples WHERE minute < now() - make_interval(days => :days)")

# The counters as of now, shaped like a sample.
COUNTERS = f"""
    SELECT model, tier, sum(stored)::bigint AS stored, sum(flagged)::bigint AS flagged,
           sum(failed)::bigint AS failed, sum(cancelled)::bigint AS cancelled
    FROM {EXACT} AS lanes GROUP BY model, tier"""

# Per step the newest sample at its end, minus that at its start; the last step ends with the counters as of now. A
# model without a sample counts from zero; a counter that has decreased was reset.
CHART = text(f"""
    WITH clock AS (
        SELECT date_bin(make_interval(mins => :step), now(), 'epoch') + make_interval(mins => :step) AS ending),
    moments AS MATERIALIZED (
        SELECT at, (SELECT max(minute) FROM lane_samples WHERE minute <= at) AS minute
        FROM clock CROSS JOIN generate_series(
            ending - make_interval(mins => :minutes), ending - make_interval(mins => :step),
            make_interval(mins => :step)) AS moment(at)),
    totals AS (
        SELECT at, sample.* FROM moments CROSS JOIN LATERAL (
            SELECT model, tier, stored, flagged, failed, cancelled FROM lane_samples
            WHERE lane_samples.minute = moments.minute OFFSET 0) AS sample
        UNION ALL
        SELECT ending, counted.* FROM clock CROSS JOIN ({COUNTERS}) AS counted),
    changes AS (
        SELECT at, greatest(stored - coalesce(lag(stored) OVER past, 0), 0) AS stored,
               greatest(flagged - coalesce(lag(flagged) OVER past, 0), 0) AS flagged,
               greatest(failed - coalesce(lag(failed) OVER past, 0), 0) AS failed,
               greatest(cancelled - coalesce(lag(cancelled) OVER past, 0), 0) AS cancelled
        FROM totals WINDOW past AS (PARTITION BY model, tier ORDER BY at)),
    steps AS (SELECT at + make_interval(mins => :step) AS at FROM moments)
    SELECT at, coalesce(sum(stored), 0)::bigint AS stored, coalesce(sum(flagged), 0)::bigint AS flagged,
           coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(cancelled), 0)::bigint AS cancelled
    FROM steps LEFT JOIN changes USING (at) GROUP BY at ORDER BY at
""")

# The counters as of now, minus the newest sample that is old enough.
TALLIES = text(f"""
    WITH before AS MATERIALIZED (
        SELECT * FROM lane_samples WHERE minute = (
            SELECT max(minute) FROM lane_samples WHERE minute <= now() - make_interval(mins => :minutes))),
    recent AS (
        SELECT model, tier, greatest(counted.stored - coalesce(before.stored, 0), 0) AS stored,
               greatest(counted.flagged - coalesce(before.flagged, 0), 0) AS flagged,
               greatest(counted.failed - coalesce(before.failed, 0), 0) AS failed,
               greatest(counted.cancelled - coalesce(before.cancelled, 0), 0) AS cancelled
        FROM ({COUNTERS}) AS counted LEFT JOIN before USING (model, tier))
    SELECT * FROM recent WHERE stored + flagged + failed + cancelled > 0 ORDER BY model, tier
""")
