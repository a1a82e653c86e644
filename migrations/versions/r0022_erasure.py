"""Tenants can be erased: since when, until when, and what the listing of the bucket has found at the end"""

from alembic import op

revision = "r0022"
down_revision = "r0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            ALTER TABLE tenants
                ADD COLUMN IF NOT EXISTS erased_at timestamptz,
                ADD COLUMN IF NOT EXISTS erasure_finished_at timestamptz,
                ADD COLUMN IF NOT EXISTS erasure_listing jsonb
        """)
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS audit_acted_on_id_idx ON audit (acted_on_id)
                WHERE acted_on_id IS NOT NULL
        """)


def downgrade() -> None:
    op.execute("DROP INDEX audit_acted_on_id_idx")
    op.execute("""
        ALTER TABLE tenants DROP COLUMN erased_at, DROP COLUMN erasure_finished_at, DROP COLUMN erasure_listing
    """)
