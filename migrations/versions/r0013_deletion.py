"""Jobs, batches, images, datasets and uploads can be deleted: tombstones, the bytes to delete, and what hides a batch

Two foreign keys go: a dataset outlives its batch, and the check of `images.lane_id` would read all images for each lane
that is deleted.
"""

from alembic import op

revision = "r0013"
down_revision = "r0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS tombstones (
                id uuid PRIMARY KEY,
                kind text NOT NULL CHECK (kind IN ('job', 'batch', 'image', 'dataset', 'upload')),
                tenant_id uuid NOT NULL REFERENCES tenants,
                key_id uuid NOT NULL,
                deleted_at timestamptz NOT NULL DEFAULT now(),
                pictures_left bigint NOT NULL DEFAULT 0,
                finished_at timestamptz
            )
        """)
        op.execute("CREATE INDEX IF NOT EXISTS tombstones_unfinished_idx ON tombstones (id) WHERE finished_at IS NULL")
        op.execute("""
            CREATE TABLE IF NOT EXISTS objects_to_delete (
                key text PRIMARY KEY,
                tombstone_id uuid,
                is_picture boolean NOT NULL DEFAULT false,
                lease_id uuid,
                due_at timestamptz NOT NULL DEFAULT now(),
                again_at timestamptz
            )
        """)
        op.execute("CREATE INDEX IF NOT EXISTS objects_to_delete_due_at_idx ON objects_to_delete (due_at)")
        op.execute("""
            CREATE INDEX IF NOT EXISTS objects_to_delete_tombstone_id_idx ON objects_to_delete (tombstone_id)
                WHERE tombstone_id IS NOT NULL
        """)
        op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS deleted_at timestamptz")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS batches_deleted_at_idx ON batches (id)
                WHERE deleted_at IS NOT NULL
        """)
        op.execute("ALTER TABLE datasets ADD COLUMN IF NOT EXISTS stale_at timestamptz")
        op.execute("ALTER TABLE datasets DROP CONSTRAINT IF EXISTS datasets_batch_id_fkey")
        op.execute("ALTER TABLE images ADD COLUMN IF NOT EXISTS picture_deleted_at timestamptz")
        op.execute("ALTER TABLE images DROP CONSTRAINT IF EXISTS images_lane_id_fkey")
        op.execute("""
            ALTER TABLE lanes
                ADD COLUMN IF NOT EXISTS deleted_stored bigint NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS deleted_flagged bigint NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS deleted_failed bigint NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS deleted_cancelled bigint NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS pictures_kept_from timestamptz
        """)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE lanes DROP COLUMN deleted_stored, DROP COLUMN deleted_flagged, DROP COLUMN deleted_failed,
            DROP COLUMN deleted_cancelled, DROP COLUMN pictures_kept_from
    """)
    op.execute("ALTER TABLE images ADD FOREIGN KEY (lane_id) REFERENCES lanes NOT VALID")
    op.execute("ALTER TABLE images DROP COLUMN picture_deleted_at")
    op.execute("ALTER TABLE datasets ADD FOREIGN KEY (batch_id) REFERENCES batches NOT VALID")
    op.execute("ALTER TABLE datasets DROP COLUMN stale_at")
    op.execute("ALTER TABLE batches DROP COLUMN deleted_at")
    op.execute("DROP TABLE objects_to_delete")
    op.execute("DROP TABLE tombstones")
