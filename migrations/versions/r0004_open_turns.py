"""Turns of work that have not ended are counted"""

from alembic import op

revision = "r0004"
down_revision = "r0003"
branch_labels = None
depends_on = None

WORK = ("batches", "datasets")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table in WORK:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS open_turns smallint NOT NULL DEFAULT 0")


def downgrade() -> None:
    for table in WORK:
        op.execute(f"ALTER TABLE {table} DROP COLUMN open_turns")
