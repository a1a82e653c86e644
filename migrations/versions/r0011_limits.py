"""Limits count the images of days and batches, and stored bytes; the lower tiers' turns have times of their own"""

from alembic import op

revision = "r0011"
down_revision = "r0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS image_days (
                tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
                day date NOT NULL,
                images bigint NOT NULL
            )
        """)
        op.execute("""
            CREATE TABLE IF NOT EXISTS stored_bytes (
                tenant_id uuid PRIMARY KEY REFERENCES tenants (id),
                bytes bigint NOT NULL,
                counted_at timestamptz NOT NULL DEFAULT now(),
                seconds real NOT NULL DEFAULT 0
            )
        """)
        op.execute("""
            ALTER TABLE batches
                ADD COLUMN IF NOT EXISTS expected bigint,
                ADD COLUMN IF NOT EXISTS counted bigint NOT NULL DEFAULT 0
        """)
        op.execute("""
            ALTER TABLE tenants
                ADD COLUMN IF NOT EXISTS lower_start double precision NOT NULL DEFAULT 0,
                ADD COLUMN IF NOT EXISTS lower_time double precision NOT NULL DEFAULT 0
        """)


def downgrade() -> None:
    op.execute("ALTER TABLE tenants DROP COLUMN lower_start, DROP COLUMN lower_time")
    op.execute("ALTER TABLE batches DROP COLUMN expected, DROP COLUMN counted")
    op.execute("DROP TABLE stored_bytes")
    op.execute("DROP TABLE image_days")
