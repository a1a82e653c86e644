"""Jobs know the row of the file that they come from and its kept values; batches know the kinds of those"""

from alembic import op

revision = "r0017"
down_revision = "r0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS origin jsonb")
        op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS kept jsonb NOT NULL DEFAULT '[]'")


def downgrade() -> None:
    op.execute("ALTER TABLE batches DROP COLUMN kept")
    op.execute("ALTER TABLE jobs DROP COLUMN origin")
