"""Samples: once a minute, what the lanes have counted so far, by model and tier. Charts are the differences.

Whatever claims and publishes knows nothing of them. Any control worker takes them; of several the first one's counts.
"""

from sqlalchemy import Connection, text

KEPT_DAYS = 8


def take(connection: Connection) -> None:
    """Take the sample of this minute if there is none yet, and forget old ones."""
    if connection.execute(TAKE).rowcount:
        connection.execute(FORGET, {"days": KEPT_DAYS})


TAKE = text("""
    INSERT INTO lane_samples (minute, model, tier, stored, flagged, failed, cancelled)
    SELECT date_trunc('minute', now()), model, tier, sum(stored), sum(flagged), sum(failed), sum(cancelled)
    FROM lanes WHERE NOT EXISTS (SELECT FROM lane_samples WHERE minute = date_trunc('minute', now()))
    GROUP BY model, tier
    ON CONFLICT DO NOTHING
""")

FORGET = text("DELETE FROM lane_samples WHERE minute < now() - make_interval(days => :days)")
