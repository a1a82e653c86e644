"""Batches that draw again what failed, that pause by themselves, and that know how fast they get on

Control workers of before would read the file of a retry: replace them before the API, whose first retry it is.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("parent_id", sa.Uuid()))
    op.create_foreign_key(op.f("batches_parent_id_fkey"), "batches", "batches", ["parent_id"], ["id"])
    op.create_index(
        "batches_parent_id_idx",
        "batches",
        ["parent_id", "cancelled_at"],
        unique=True,
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.add_column("batches", sa.Column("pace", postgresql.JSONB(), server_default="[]", nullable=False))
    op.add_column("batches", sa.Column("stop_rule", postgresql.JSONB()))
    op.add_column("batches", sa.Column("paused_because", sa.Text()))
    op.create_check_constraint(
        op.f("batches_stop_rule_check"),
        "batches",
        "paused_because IS NULL OR stop_rule IS NOT NULL",
        postgresql_not_valid=True,
    )
    op.add_column("datasets", sa.Column("retries", sa.ARRAY(sa.Uuid()), server_default="{}", nullable=False))


def downgrade() -> None:
    op.drop_column("datasets", "retries")
    for name in ("paused_because", "stop_rule", "pace", "parent_id"):
        op.drop_column("batches", name)
