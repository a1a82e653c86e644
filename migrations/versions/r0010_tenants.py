"""Tenants have limits, tiers, retention and may be suspended; keys expire; the audit names the address and the tenant

The scope `operator` goes to the admin keys of the tenant that `huafang admin bootstrap` makes.
"""

from alembic import op

revision = "r0010"
down_revision = "r0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            ALTER TABLE tenants
                ADD COLUMN IF NOT EXISTS limits jsonb NOT NULL DEFAULT '{}',
                ADD COLUMN IF NOT EXISTS tiers tier[],
                ADD COLUMN IF NOT EXISTS keep_pictures_days integer CHECK (keep_pictures_days > 0),
                ADD COLUMN IF NOT EXISTS keep_rows_days integer CHECK (keep_rows_days > 0),
                ADD COLUMN IF NOT EXISTS suspended_at timestamptz
        """)
        op.execute("ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS expires_at timestamptz")
        op.execute("""
            ALTER TABLE audit
                ADD COLUMN IF NOT EXISTS address text,
                ADD COLUMN IF NOT EXISTS acted_on_id uuid
        """)
        op.execute("""
            UPDATE api_keys SET scopes = scopes || '{operator}' FROM tenants
            WHERE tenants.id = api_keys.tenant_id AND tenants.name = 'default'
                AND 'admin' = ANY(scopes) AND NOT 'operator' = ANY(scopes)
        """)


def downgrade() -> None:
    op.execute("UPDATE api_keys SET scopes = array_remove(scopes, 'operator') WHERE 'operator' = ANY(scopes)")
    op.execute("ALTER TABLE audit DROP COLUMN address, DROP COLUMN acted_on_id")
    op.execute("ALTER TABLE api_keys DROP COLUMN expires_at")
    op.execute("""
        ALTER TABLE tenants DROP COLUMN limits, DROP COLUMN tiers, DROP COLUMN keep_pictures_days,
            DROP COLUMN keep_rows_days, DROP COLUMN suspended_at
    """)
