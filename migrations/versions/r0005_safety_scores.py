"""Scores of the safety checker are kept with the image"""

from alembic import op

revision = "r0005"
down_revision = "r0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            ALTER TABLE images ADD COLUMN IF NOT EXISTS safety_score real,
                ADD COLUMN IF NOT EXISTS safety_concept smallint
        """)
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS images_flagged_idx ON images (finished_at) WHERE state = 'flagged'
        """)


def downgrade() -> None:
    op.execute("DROP INDEX images_flagged_idx")
    op.execute("ALTER TABLE images DROP COLUMN safety_score, DROP COLUMN safety_concept")
