"""The farm at a glance: what it did lately, by the minute and by model and tier. Of everybody, and no prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from common.enums import Tier


@dataclass(frozen=True)
class Span:
    """The time that a chart shows, and that one of its points stands for."""

    minutes: int
    step: int


HOUR = Span(60, 1)
DAY = Span(24 * 60, 15)
LATELY = 15  # minutes


@dataclass(frozen=True)
class Point:
    """How many images ended in the step that ends at this moment, and how."""

    at: datetime
    stored: int
    flagged: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Tally:
    """How many images of a model and tier ended lately, and how."""

    model: str
    tier: Tier
    stored: int
    flagged: int
    failed: int
    cancelled: int


def read_chart(connection: Connection, span: Span) -> Sequence[Point]:
    """Oldest first; the last step is not over yet."""
    return [Point(**row._mapping) for row in connection.execute(CHART, vars(span))]


def read_tallies(connection: Connection, minutes: int = LATELY) -> Sequence[Tally]:
    """Of the models and tiers that had any image end in so many minutes."""
    rows = connection.execute(TALLIES, {"minutes": minutes})
    return [Tally(**{**row._mapping, "tier": Tier(row.tier)}) for row in rows]


NOW = """
    SELECT model, tier, sum(stored)::bigint AS stored, sum(flagged)::bigint AS flagged,
           sum(failed)::bigint AS failed, sum(cancelled)::bigint AS cancelled
    FROM lanes GROUP BY model, tier"""

# A step is told by the newest samples at its ends; the one that is not over yet by the lanes themselves. A model that
# was in no sample had counted nothing; a counter that went down was begun anew.
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
        SELECT ending, counted.* FROM clock CROSS JOIN ({NOW}) AS counted),
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

TALLIES = text(f"""
    WITH before AS MATERIALIZED (
        SELECT * FROM lane_samples WHERE minute = (
            SELECT max(minute) FROM lane_samples WHERE minute <= now() - make_interval(mins => :minutes))),
    lately AS (
        SELECT model, tier, greatest(counted.stored - coalesce(before.stored, 0), 0) AS stored,
               greatest(counted.flagged - coalesce(before.flagged, 0), 0) AS flagged,
               greatest(counted.failed - coalesce(before.failed, 0), 0) AS failed,
               greatest(counted.cancelled - coalesce(before.cancelled, 0), 0) AS cancelled
        FROM ({NOW}) AS counted LEFT JOIN before USING (model, tier))
    SELECT * FROM lately WHERE stored + flagged + failed + cancelled > 0 ORDER BY model, tier
""")
