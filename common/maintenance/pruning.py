"""Pruning: rows that nothing needs any more, table by table. What tenants own is theirs: it is not touched here.

Each step deletes at most STEP_ROWS rows of one table and is safe in many copies: what another one has locked is left to
it. The sweep runs them once a minute, `huafang admin prune` at once. Knows no object of the image store.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, text

from common.accounts.idempotency import KEY_HOURS
from common.config import Settings
from common.db import id_of_time
from common.failures import FORGOTTEN_S
from common.queue.lanes import ARCHIVE, IS_OVER
from common.queue.stats import KEPT_DAYS

STEP_ROWS = 1000  # deleted by one statement
STOPPED_DAYS = 1  # how long a worker that has stopped is shown
UNUSED_DAYS = 30  # how long the trial picture of a model is kept that no worker serves


@dataclass(frozen=True)
class Rule:
    """The rows of a table that can go."""

    table: str
    count: TextClause
    delete: TextClause  # a step


def _rule(table: str, order: str, condition: str) -> Rule:
    found = f"SELECT ctid FROM {table} WHERE {condition} ORDER BY {order} LIMIT :rows FOR UPDATE SKIP LOCKED"
    return Rule(
        table,
        text(f"SELECT count(*) FROM {table} WHERE {condition}"),
        text(f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({found}))"),
    )


def count(connection: Connection, settings: Settings) -> dict[str, int]:
    """How many rows of each table can go."""
    parameters = _parameters(settings)
    return {rule.table: int(connection.execute(rule.count, parameters).scalar_one()) for rule in RULES}


def step(connection: Connection, rule: Rule, settings: Settings) -> int:
    """Delete some of the rows that can go; how many. Fewer than STEP_ROWS: no more are left to this process."""
    return connection.execute(rule.delete, _parameters(settings)).rowcount


def _parameters(settings: Settings) -> dict[str, object]:
    return {
        "rows": STEP_ROWS,
        "lease_days": settings.lease_days,
        "lease_bound": id_of_time(time.time() - 86400 * settings.lease_days),
        "audit_days": settings.audit_days,
    }


def _older(column: str, days: str) -> str:
    return f"{column} < now() - make_interval(secs => 86400 * cast({days} AS double precision))"


def _rules() -> Iterator[Rule]:
    # Found by id, which is the time of the claim: no index has the end. None that holds an image, or whose objects the
    # sweep has yet to delete.
    yield _rule(
        "leases",
        "id",
        f"""id < :lease_bound AND {_older("ended_at", ":lease_days")} AND NOT needs_cleanup
            AND NOT EXISTS (
                SELECT FROM images WHERE images.id = ANY(leases.image_ids) AND images.lease_id = leases.id
                    AND images.state IN ('queued', 'running'))""",
    )
    yield Rule("lanes", text(f"SELECT count(*) FROM lanes WHERE {IS_OVER}"), ARCHIVE)
    yield _rule("lane_samples", "minute", _older("minute", str(KEPT_DAYS)))
    yield _rule("workers", "id", f"state = 'stopped' AND {_older('seen_at', str(STOPPED_DAYS))}")
    yield _rule("idempotency_keys", "created_at", f"created_at < now() - interval '{KEY_HOURS} hours'")
    yield _rule("audit", "at", _older("at", ":audit_days"))
    yield _rule("step_failures", "failed_at", f"failed_at < now() - interval '{FORGOTTEN_S} s'")
    yield _rule(
        "trial_pictures",
        "digest",
        f"""{_older("recorded_at", str(UNUSED_DAYS))}
            AND NOT EXISTS (SELECT FROM workers WHERE trial_pictures.model = ANY(workers.models))
            AND NOT EXISTS (SELECT FROM quarantines WHERE quarantines.known_picture = trial_pictures.digest)""",
    )


RULES = tuple(_rules())
