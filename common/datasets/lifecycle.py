"""Datasets: exports of batches, which control workers write one shard after the other.

    submit ──► waiting ──► writing ──► ready       all its files are in storage
                  └───────────┴──────► failed      its batch has no stored image; or, once ready, files of it are gone

A control worker owns the dataset for a turn while it writes: every change but the first names the owner, so a worker
that has lost its ownership changes nothing. `open_turns` counts the turns since the dataset last came further that have
not ended: a process that dies leaves one. Writes no file (`layout` has their names), reads no image (`contents` does).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from common.datasets import sentence
from common.datasets.layout import DatasetPlan
from common.db import CODE, new_id
from common.errors import NotFound
from common.failures import BACKOFF_S, INTERNAL_ERROR, MAX_FAILURES, PROGRESS, REST, RESTED, internal_error
from common.recipes.recipe import canonical_json
from common.schema import columns_of, datasets

EXPORT_SILENCE_S = 30.0  # an owner that has recorded nothing for so long loses the dataset


@dataclass(frozen=True)
class Dataset:
    """What an exporter needs of a dataset. The next shard is number `shard` of split number `split`.

    `open_before`: how many turns before this one are open.
    """

    id: UUID
    batch_id: UUID
    retries: Sequence[UUID]  # of the batch; their images replace those that failed
    plan: DatasetPlan
    split: int
    shard: int
    position: int  # of the prompt in the batch where the next shard starts
    shards: int
    images: int
    owner_id: UUID
    open_before: int
    needs_code: int

    @property
    def split_name(self) -> str | None:
        """None when every split is written."""
        names = self.plan.split_names
        return names[self.split] if self.split < len(names) else None


@dataclass(frozen=True)
class Step:
    """What one step has written, and where the next one starts: in the same split, or in the next."""

    position: int
    ends_split: bool
    images: int
    pictures: int  # images with a file


def submit(
    connection: Connection,
    tenant_id: UUID,
    batch_id: UUID,
    plan: DatasetPlan,
    *,
    request_id: str | None = None,
    dataset_id: UUID | None = None,
) -> UUID:
    """Insert a dataset. Raises NotFound when the tenant has no such batch."""
    dataset_id = dataset_id or new_id()
    parameters = {
        "dataset": dataset_id,
        "tenant": tenant_id,
        "batch": batch_id,
        "plan": canonical_json(plan.model_dump(mode="json")),
        "request": request_id,
        "needs_code": plan.needs_code,
    }
    if connection.execute(INSERT, parameters).rowcount == 0:
        raise NotFound(sentence("batch_not_found", batch=batch_id))
    return dataset_id


def due(connection: Connection, silence_s: float, rest_s: float) -> list[UUID]:
    """At most 100 unfinished datasets untouched for `rest_s` and without an owner, or for `silence_s` with one.

    Without those that need newer code, for their plan or their batch.
    """
    return list(connection.execute(DUE, {"silence": silence_s, "rest": rest_s, "code": CODE}).scalars())


def unfinished_of(connection: Connection, batch_ids: Sequence[UUID]) -> list[UUID]:
    """The unfinished datasets that take images from any of these batches."""
    return list(connection.execute(UNFINISHED_OF, {"batches": list(batch_ids)}).scalars()) if batch_ids else []


def acquire(connection: Connection, dataset_id: UUID, silence_s: float) -> Dataset | None:
    """Become the owner of a dataset for a turn. None when it has ended, or its owner was active within `silence_s`.

    None too when it needs newer code.
    """
    wanted = {"dataset": dataset_id, "owner": new_id(), "silence": silence_s, "code": CODE}
    row = connection.execute(ACQUIRE, wanted).first()
    return _dataset(row) if row else None


def release(connection: Connection, dataset: Dataset) -> bool:
    """Give the ownership up. This and the functions below change nothing and return False when it was lost."""
    return _update(connection, RELEASE, dataset)


def end_turn(connection: Connection, dataset: Dataset) -> None:
    """The turn has ended, whatever came of it: the process has not died of the dataset, even if it has lost it."""
    connection.execute(END_TURN, {"dataset": dataset.id})


def record_written(connection: Connection, dataset: Dataset, images: int) -> bool:
    """Record that so many images of the current shard are written."""
    return _update(connection, RECORD_WRITTEN, dataset, images=images)


def advance(connection: Connection, dataset: Dataset, step: Step) -> Dataset | None:
    """Record that a shard or a split is written. The dataset after it; None when the ownership was lost."""
    row = connection.execute(ADVANCE, {"dataset": dataset.id, "owner": dataset.owner_id, **vars(step)}).first()
    return _dataset(row) if row else None


def finish(connection: Connection, dataset: Dataset, digest: str, files: int, size: int) -> bool:
    """Record that every file is written. `digest`: the sha256 of SHA256SUMS; `size`: bytes of all files."""
    return _update(connection, FINISH, dataset, digest=digest, files=files, bytes=size)


def fail(connection: Connection, dataset: Dataset, code: str, message: str) -> bool:
    """End a dataset that cannot be written."""
    return _update(connection, FAIL, dataset, code=code, message=message)


def lose(connection: Connection, dataset_id: UUID, code: str, message: str) -> None:
    """Fail a ready dataset whose files are not all in storage any more."""
    connection.execute(LOSE, {"dataset": dataset_id, "code": code, "message": message})


def fail_of_batches(connection: Connection, batch_ids: Sequence[UUID], code: str, message: str) -> None:
    """Fail the datasets of these batches that are not written yet, whoever owns them."""
    connection.execute(FAIL_OF_BATCHES, {"batches": list(batch_ids), "code": code, "message": message})


def count_failure(
    connection: Connection, dataset_id: UUID, owner_id: UUID | None, reference: str, backoff_s: float = BACKOFF_S
) -> bool:
    """Count an unforeseen failure, and give the ownership up; True if that was the last one and has ended the dataset.

    `owner_id` is None when it failed before it became the owner. Counts nothing when another call owns the dataset.
    """
    ends = {
        "most": MAX_FAILURES,
        "code": INTERNAL_ERROR,
        "message": internal_error(reference),
        "silence": EXPORT_SILENCE_S,
    }
    counted = {"dataset": dataset_id, "owner": owner_id, "backoff": backoff_s}
    return bool(connection.execute(COUNT_FAILURE, ends | counted).scalar())


def _update(connection: Connection, statement: TextClause, dataset: Dataset, **values: Any) -> bool:
    owned = {"dataset": dataset.id, "owner": dataset.owner_id}
    return connection.execute(statement, owned | values).rowcount > 0


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        batch_id=row.batch_id,
        retries=row.retries,
        plan=DatasetPlan.model_validate(row.plan),
        split=row.split,
        shard=row.shard,
        position=row.position,
        shards=row.shards,
        images=row.images,
        owner_id=row.owner_id,
        open_before=row.open_turns - 1,
        needs_code=row.needs_code,
    )


# The fence: matches no row when the dataset has another owner.
OWNED = "id = :dataset AND owner_id = :owner AND finished_at IS NULL"

# Insert a dataset of a batch of this tenant, with the retries that the batch has now.
INSERT = text("""
    WITH RECURSIVE retries AS (
        SELECT id FROM batches WHERE parent_id = :batch AND deleted_at IS NULL
        UNION ALL SELECT batches.id FROM batches JOIN retries ON batches.parent_id = retries.id
        WHERE deleted_at IS NULL)
    INSERT INTO datasets (id, tenant_id, batch_id, retries, plan, request_id, needs_code)
    SELECT :dataset, tenant_id, id, ARRAY(SELECT id FROM retries ORDER BY id), cast(:plan AS jsonb), :request,
           :needs_code
    FROM batches WHERE id = :batch AND tenant_id = :tenant AND deleted_at IS NULL
""")

# Neither the plan nor a recipe of the batch needs newer code.
UNDERSTOOD = """
    needs_code <= :code AND NOT EXISTS (SELECT FROM batches WHERE batches.id = batch_id AND batches.needs_code > :code)
"""

# The unfinished datasets that have waited longest, owned or not; none in its back-off.
DUE = text(f"""
    SELECT id FROM datasets
    WHERE finished_at IS NULL AND {RESTED}
        AND touched_at < now() - make_interval(secs => CASE WHEN owner_id IS NULL THEN :rest ELSE :silence END)
        AND {UNDERSTOOD}
    ORDER BY touched_at LIMIT 100
""")

# The unfinished datasets of these batches, or of batches whose retries these are.
UNFINISHED_OF = text("""
    SELECT id FROM datasets
    WHERE finished_at IS NULL AND (batch_id = ANY(:batches) OR retries && cast(:batches AS uuid[]))
""")

# Become the owner, unless the present owner was active lately, or the dataset waits for another try.
ACQUIRE = text(f"""
    UPDATE datasets SET owner_id = :owner, touched_at = now(), open_turns = open_turns + 1
    WHERE id = :dataset AND finished_at IS NULL AND {RESTED}
        AND (owner_id IS NULL OR touched_at < now() - make_interval(secs => :silence))
        AND {UNDERSTOOD}
    RETURNING {columns_of(datasets)}
""")

# Give the ownership up, after work that did not fail.
RELEASE = text(f"""
    UPDATE datasets SET owner_id = NULL, touched_at = now(), failures = 0, retry_at = NULL WHERE {OWNED}
""")

# No turn of a dataset is open, as far as this process knows.
END_TURN = text("UPDATE datasets SET open_turns = 0 WHERE id = :dataset AND open_turns > 0")

# Record how many images of the current shard are written. It comes further with more than any turn has written of it.
RECORD_WRITTEN = text(f"""
    UPDATE datasets SET written = greatest(written, :images), touched_at = now(),
        open_turns = CASE WHEN :images > written THEN 1 ELSE open_turns END,
        begun_at = CASE WHEN :images > 0 THEN coalesce(begun_at, now()) ELSE begun_at END
    WHERE {OWNED}
""")

# Count a written shard, and move on to the next shard or to the next split.
ADVANCE = text(f"""
    UPDATE datasets SET
        position = CASE WHEN :ends_split THEN 0 ELSE :position END,
        split = split + CASE WHEN :ends_split THEN 1 ELSE 0 END,
        shard = CASE WHEN :ends_split THEN 0 ELSE shard + 1 END,
        shards = shards + CASE WHEN :images > 0 THEN 1 ELSE 0 END,
        images = images + :images, pictures = pictures + :pictures,
        written = 0, touched_at = now(), begun_at = coalesce(begun_at, now()), {PROGRESS}
    WHERE {OWNED} RETURNING {columns_of(datasets)}
""")

# End a dataset as ready.
FINISH = text(f"""
    UPDATE datasets SET digest = :digest, files = :files, bytes = :bytes,
        finished_at = now(), touched_at = now(), owner_id = NULL
    WHERE {OWNED}
""")

# End a dataset as failed.
FAIL = text(f"""
    UPDATE datasets SET error_code = :code, error_message = :message,
        finished_at = now(), touched_at = now(), owner_id = NULL
    WHERE {OWNED}
""")

# Fail a ready dataset.
LOSE = text("""
    UPDATE datasets SET error_code = :code, error_message = :message, digest = NULL
    WHERE id = :dataset AND digest IS NOT NULL
""")

# Fail the unfinished datasets of batches.
FAIL_OF_BATCHES = text("""
    UPDATE datasets SET error_code = :code, error_message = :message, finished_at = now(), touched_at = now(),
        owner_id = NULL
    WHERE batch_id = ANY(:batches) AND finished_at IS NULL
""")

# Count a failure, and give the ownership up. The last one ends the dataset as failed.
COUNT_FAILURE = text(f"""
    UPDATE datasets SET failures = failures + 1, owner_id = NULL, touched_at = now(),
        retry_at = CASE WHEN NOT is_last THEN now() + {REST} END,
        error_code = CASE WHEN is_last THEN :code END, error_message = CASE WHEN is_last THEN :message END,
        finished_at = CASE WHEN is_last THEN now() END
    FROM (SELECT failures + 1 >= :most AS is_last FROM datasets WHERE id = :dataset FOR NO KEY UPDATE) AS locked
    WHERE id = :dataset AND finished_at IS NULL AND {RESTED}
        AND (owner_id = :owner OR owner_id IS NULL OR touched_at < now() - make_interval(secs => :silence))
    RETURNING is_last
""")
