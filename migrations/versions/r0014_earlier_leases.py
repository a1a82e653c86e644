"""Images name the leases that held them before; the index that found those went over all images of all leases

It was written twice for each image, and took more room than the leases. The key of images to lanes goes too: without an
index of its own, the check at the deletion of a lane read all images. Lanes are deleted only where no image can be left
or come: see `common.maintenance.pruning`.
"""

from alembic import op

revision = "r0014"
down_revision = "r0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE images ADD COLUMN IF NOT EXISTS earlier_leases uuid[]")
        # Ended images only: no worker waits for their rows. Those of an older release that run now name one lease.
        op.execute("""
            UPDATE images SET earlier_leases = held.leases
            FROM (SELECT image.id, (array_agg(leases.id ORDER BY leases.id DESC))[1:20] AS leases
                  FROM leases CROSS JOIN unnest(leases.image_ids) AS held(id) JOIN images AS image ON image.id = held.id
                  WHERE leases.ended_at IS NOT NULL AND image.finished_at IS NOT NULL
                      AND image.lease_id IS DISTINCT FROM leases.id
                  GROUP BY image.id) AS held
            WHERE images.id = held.id AND images.earlier_leases IS NULL
        """)
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS leases_image_ids_idx")
        op.execute("ALTER TABLE images DROP CONSTRAINT IF EXISTS images_lane_id_fkey")


def downgrade() -> None:
    op.execute("ALTER TABLE images ADD CONSTRAINT images_lane_id_fkey FOREIGN KEY (lane_id) REFERENCES lanes NOT VALID")
    op.execute("CREATE INDEX leases_image_ids_idx ON leases USING gin (image_ids)")
    op.execute("ALTER TABLE images DROP COLUMN earlier_leases")
