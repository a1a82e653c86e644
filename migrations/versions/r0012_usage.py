"""Jobs and batches know the key that submitted them; what tenants took is in a ledger, and summed up by day"""

from alembic import op

revision = "r0012"
down_revision = "r0011"
branch_labels = None
depends_on = None

USED = """
    day date NOT NULL,
    tenant_id uuid NOT NULL,
    key_id uuid,
    model text NOT NULL,
    tier tier NOT NULL,
    images bigint NOT NULL,
    gpu_ms bigint NOT NULL,
    pixels bigint NOT NULL,
    bytes bigint NOT NULL
"""


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE jobs ADD COLUMN IF NOT EXISTS key_id uuid")
        op.execute("ALTER TABLE batches ADD COLUMN IF NOT EXISTS key_id uuid")
        op.execute(f"CREATE TABLE IF NOT EXISTS usage_entries ({USED})")
        op.execute(f"""
            CREATE TABLE IF NOT EXISTS usage_days ({USED},
                CONSTRAINT usage_days_tenant_id_day_key_id_model_tier_key
                UNIQUE NULLS NOT DISTINCT (tenant_id, day, key_id, model, tier))
        """)
        op.execute("CREATE INDEX IF NOT EXISTS usage_days_day_idx ON usage_days (day)")


def downgrade() -> None:
    op.execute("DROP TABLE usage_days, usage_entries")
    op.execute("ALTER TABLE batches DROP COLUMN key_id")
    op.execute("ALTER TABLE jobs DROP COLUMN key_id")
