"""What became of a batch's images. Its state, counts, pace and ETA are `api.queries.batches`'s."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from api.dashboard.queries.gallery import PICTURE, Picture, picture_of


@dataclass(frozen=True)
class FailureGroup:
    """Images of a batch that failed with one code, and the newest of them for an example."""

    code: str
    count: int
    message: str
    image_id: UUID
    job_id: UUID
    prompt: str


def find_failure_groups(connection: Connection, tenant_id: UUID, batch_id: UUID) -> Sequence[FailureGroup]:
    """The most frequent first, of the 1,000 images that failed last. How many have failed at all its lanes count."""
    rows = connection.execute(TROUBLES, {"tenant": tenant_id, "batch": batch_id, "limit": 1000})
    return [FailureGroup(**row._mapping) for row in rows]


def find_thumbnails(
    connection: Connection, tenant_id: UUID, batch_ids: Sequence[UUID], limit: int = 12
) -> dict[UUID, list[Picture]]:
    """The newest pictures of each of these batches."""
    strips: dict[UUID, list[Picture]] = {batch_id: [] for batch_id in batch_ids}
    for row in connection.execute(STRIPS, {"tenant": tenant_id, "batches": list(batch_ids), "limit": limit}):
        strips[row.batch_id].append(picture_of(row))
    return strips


TROUBLES = text("""
    WITH newest AS MATERIALIZED (
        SELECT image.* FROM lanes CROSS JOIN LATERAL (
            SELECT id, job_id, error_code, error_message, finished_at FROM images
            WHERE images.lane_id = lanes.id AND images.state = 'failed'
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
        WHERE lanes.batch_id = :batch AND lanes.tenant_id = :tenant AND lanes.failed > 0
        ORDER BY finished_at DESC, id DESC LIMIT :limit),
    example AS (
        SELECT DISTINCT ON (error_code) *, count(*) OVER (PARTITION BY error_code) AS count
        FROM newest ORDER BY error_code, finished_at DESC, id DESC)
    SELECT example.error_code AS code, example.count, coalesce(example.error_message, '') AS message,
           example.id AS image_id, example.job_id, jobs.recipe ->> 'prompt' AS prompt
    FROM example JOIN jobs ON jobs.id = example.job_id ORDER BY count DESC, code
""")

STRIPS = text(f"""
    WITH images AS MATERIALIZED (
        SELECT strip.* FROM unnest(cast(:batches AS uuid[])) AS batch(id) CROSS JOIN LATERAL (
            SELECT image.* FROM lanes CROSS JOIN LATERAL (
                SELECT id, job_id, index, bytes, finished_at FROM images
                WHERE images.lane_id = lanes.id AND images.state = 'stored'
                ORDER BY finished_at DESC, id DESC LIMIT :limit) AS image
            WHERE lanes.batch_id = batch.id AND lanes.tenant_id = :tenant AND lanes.stored > 0
            ORDER BY finished_at DESC, id DESC LIMIT :limit) AS strip)
    SELECT {PICTURE} FROM images JOIN jobs ON jobs.id = images.job_id
    ORDER BY images.finished_at DESC, images.id DESC
""")
