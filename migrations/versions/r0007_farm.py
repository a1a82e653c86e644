"""The farm has an id, which its bucket and its pepper carry too"""

from alembic import op

revision = "r0007"
down_revision = "r0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS farm (
                is_only_row boolean PRIMARY KEY DEFAULT true,
                id uuid NOT NULL,
                pepper_digest text,
                bucket_marked_at timestamptz,
                created_at timestamptz NOT NULL DEFAULT now(),
                CONSTRAINT farm_is_only_row_check CHECK (is_only_row)
            )
        """)


def downgrade() -> None:
    op.execute("DROP TABLE farm")
