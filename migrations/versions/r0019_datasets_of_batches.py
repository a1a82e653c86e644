"""A dataset of several batches: which, and which of them is being written"""

from alembic import op

revision = "r0019"
down_revision = "r0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            ALTER TABLE datasets
                ADD COLUMN IF NOT EXISTS more_batches uuid[] NOT NULL DEFAULT '{}',
                ADD COLUMN IF NOT EXISTS source smallint NOT NULL DEFAULT 0
        """)


def downgrade() -> None:
    op.execute("ALTER TABLE datasets DROP COLUMN more_batches, DROP COLUMN source")
