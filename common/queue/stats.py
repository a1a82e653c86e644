"""What waits and what runs, by model and tier, for the queue page and the metrics. Cheap whatever the backlog: lanes
count what is open, and only leases that are open or just ended are looked at.
"""

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from common.db import id_of_time

LONGEST_LEASE_S = 900  # a lease that ended in the last minute was claimed no longer ago than this


def read_backlog(connection: Connection) -> Sequence[Row[Any]]:
    """Rows of model, tier, waiting, running, oldest_s (null: nothing waits), images_per_minute. What rests in a batch
    that is paused or cancelled does not wait.
    """
    return connection.execute(BACKLOG, {"since": id_of_time(time.time() - LONGEST_LEASE_S)}).all()


BACKLOG = text("""
    WITH facts AS (
        SELECT model, tier, open, 0 AS running, 0 AS stored, 0 AS taken, head.created_at
        FROM lanes LEFT JOIN LATERAL (
            SELECT jobs.created_at FROM images JOIN jobs ON jobs.id = images.job_id
            WHERE images.lane_id = lanes.id AND images.state = 'queued' AND images.lease_id IS NULL
                AND images.not_before IS NULL
            ORDER BY images.id LIMIT 1) AS head ON true
        WHERE lanes.open > 0 AND NOT lanes.closed
        UNION ALL
        SELECT model, tier, 0, (images.state = 'running')::int,
               (images.state = 'stored' AND images.finished_at > now() - interval '1 minute')::int,
               (images.state = 'running' AND NOT lanes.closed)::int, NULL
        FROM leases CROSS JOIN LATERAL unnest(leases.image_ids) AS held(id)
        JOIN images ON images.id = held.id AND images.lease_id = leases.id
        JOIN lanes ON lanes.id = images.lane_id
        WHERE leases.ended_at IS NULL OR (leases.id > :since AND leases.ended_at > now() - interval '1 minute'))
    SELECT model, tier, greatest(sum(open) - sum(taken), 0)::bigint AS waiting, sum(running)::bigint AS running,
           extract(epoch FROM now() - min(created_at))::float AS oldest_s, sum(stored)::bigint AS images_per_minute
    FROM facts GROUP BY model, tier ORDER BY model, tier
""")
