"""Work of a release that does not exist yet: rows as it would write them, which this code does not understand."""

from uuid import UUID

from sqlalchemy import Connection, text

from common.db import CODE

NEWER = CODE + 1

# Gives a job and its lanes fields that came later, one of them in another.
MAKE_JOB_NEWER = text("""
    WITH lane AS (
        UPDATE lanes SET needs_code = :code, compatibility = compatibility || ' code ' || :code
        WHERE id IN (SELECT lane_id FROM images WHERE job_id = :job))
    UPDATE jobs SET recipe = recipe || '{"control": {"image": 1}, "lora": [{"name": "ink", "weight": 1, "until": 9}]}'
    WHERE id = :job
""")

# Gives a batch a plan, in its matrix too, and a stop rule that came later.
MAKE_BATCH_NEWER = text("""
    UPDATE batches SET needs_code = :code,
        plan = plan || '{"order": "random", "matrix": {"control": [1, 2]}}',
        stop_rule = '{"percent": 50, "of_last": 10, "seconds": 3}', progress_samples = '[[1, 0, 0, 0, 9]]'
    WHERE id = :batch
""")

# Gives a dataset a plan that came later.
MAKE_DATASET_NEWER = text(
    "UPDATE datasets SET needs_code = :code, plan = plan || '{\"captions\": true}' WHERE id = :dataset"
)


def make_job_newer(connection: Connection, job_id: UUID | str) -> None:
    """The job must be alone in its lanes."""
    connection.execute(MAKE_JOB_NEWER, {"job": job_id, "code": NEWER})


def make_batch_newer(connection: Connection, batch_id: UUID | str) -> None:
    connection.execute(MAKE_BATCH_NEWER, {"batch": batch_id, "code": NEWER})


def make_dataset_newer(connection: Connection, dataset_id: UUID | str) -> None:
    connection.execute(MAKE_DATASET_NEWER, {"dataset": dataset_id, "code": NEWER})
