"""Licences: who has accepted which version of which"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "acceptances",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("acceptances_tenant_id_fkey")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("acceptances_key_id_fkey")),
        sa.PrimaryKeyConstraint("tenant_id", "licence", "version", name=op.f("acceptances_pkey")),
    )


def downgrade() -> None:
    op.drop_table("acceptances")
