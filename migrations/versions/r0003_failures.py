"""Unforeseen failures are counted"""

from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None

WORK = ("batches", "datasets")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS step_failures (
                step text NOT NULL,
                subject text NOT NULL DEFAULT '',
                failures int NOT NULL DEFAULT 1,
                reference text NOT NULL,
                since timestamptz NOT NULL DEFAULT now(),
                failed_at timestamptz NOT NULL DEFAULT now(),
                retry_at timestamptz NOT NULL,
                PRIMARY KEY (step, subject)
            )
        """)
        for table in WORK:
            op.execute(f"""
                ALTER TABLE {table} ADD COLUMN IF NOT EXISTS failures smallint NOT NULL DEFAULT 0,
                    ADD COLUMN IF NOT EXISTS retry_at timestamptz
            """)
            op.execute(f"""
                CREATE INDEX CONCURRENTLY IF NOT EXISTS {table}_internal_error_idx ON {table} (tenant_id)
                WHERE error_code = 'internal_error'
            """)


def downgrade() -> None:
    for table in WORK:
        op.execute(f"DROP INDEX {table}_internal_error_idx")
        op.execute(f"ALTER TABLE {table} DROP COLUMN failures, DROP COLUMN retry_at")
    op.execute("DROP TABLE step_failures")
