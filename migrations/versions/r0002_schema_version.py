"""Which code works with the tables, and which code understands a row of work"""

from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

WORK = ("batches", "datasets", "lanes")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS schema_version (
                is_only_row boolean PRIMARY KEY DEFAULT true,
                revision int NOT NULL,
                oldest_code int NOT NULL,
                CONSTRAINT schema_version_is_only_row_check CHECK (is_only_row)
            )
        """)
        op.execute("INSERT INTO schema_version (revision, oldest_code) VALUES (1, 1) ON CONFLICT DO NOTHING")
        for table in WORK:
            op.execute(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS needs_code int NOT NULL DEFAULT 1")


def downgrade() -> None:
    for table in WORK:
        op.execute(f"ALTER TABLE {table} DROP COLUMN needs_code")
    op.execute("DROP TABLE schema_version")
