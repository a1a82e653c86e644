"""Images that end in a busy lane are counted later: their numbers wait in a table that is only inserted into"""

from alembic import op

revision = "r0009"
down_revision = "r0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS lane_changes (
                lane_id bigint NOT NULL,
                ended integer NOT NULL,
                stored integer NOT NULL,
                flagged integer NOT NULL,
                failed integer NOT NULL,
                cancelled integer NOT NULL
            )
        """)
        op.execute("ALTER TABLE lanes ADD COLUMN IF NOT EXISTS counted_at timestamptz")


def downgrade() -> None:
    op.execute("""
        WITH tally AS (
            SELECT lane_id, sum(ended) AS ended, sum(stored) AS stored, sum(flagged) AS flagged,
                   sum(failed) AS failed, sum(cancelled) AS cancelled
            FROM lane_changes GROUP BY lane_id)
        UPDATE lanes SET open = lanes.open - tally.ended, stored = lanes.stored + tally.stored,
            flagged = lanes.flagged + tally.flagged, failed = lanes.failed + tally.failed,
            cancelled = lanes.cancelled + tally.cancelled
        FROM tally WHERE lanes.id = tally.lane_id
    """)
    op.execute("DROP TABLE lane_changes")
    op.execute("ALTER TABLE lanes DROP COLUMN counted_at")
