"""The audit: who did what"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    postgresql.ENUM("api", "dashboard", "shell", name="via").create(op.get_bind())
    op.create_table(
        "audit",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=False),
        sa.Column("via", postgresql.ENUM(name="via", create_type=False), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text()),
        sa.Column("detail", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("request_id", sa.Text()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("audit_tenant_id_fkey")),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("audit_key_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("audit_pkey")),
    )
    op.create_index("audit_tenant_id_idx", "audit", ["tenant_id", "id"])
    op.create_index(op.f("audit_at_idx"), "audit", ["at"])


def downgrade() -> None:
    op.drop_table("audit")
    op.execute("DROP TYPE via")
