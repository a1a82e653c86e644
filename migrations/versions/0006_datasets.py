"""Datasets: what exports of batches write, and how far they have come"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATE = (
    "CASE WHEN error_code IS NOT NULL THEN 'failed'::dataset_state"
    " WHEN finished_at IS NOT NULL THEN 'ready'::dataset_state"
    " WHEN begun_at IS NOT NULL THEN 'writing'::dataset_state ELSE 'waiting'::dataset_state END"
)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    now = sa.text("now()")
    states = postgresql.ENUM("failed", "ready", "writing", "waiting", name="dataset_state")
    states.create(op.get_bind())
    op.create_table(
        "datasets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("plan", postgresql.JSONB(), nullable=False),
        sa.Column(
            "state",
            postgresql.ENUM(name="dataset_state", create_type=False),
            sa.Computed(STATE, persisted=True),
            nullable=False,
        ),
        sa.Column("split", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("shard", sa.Integer(), server_default="0", nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in ("place", "written")),
        sa.Column("shards", sa.Integer(), server_default="0", nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in ("images", "pictures")),
        *(sa.Column(name, sa.BigInteger()) for name in ("files", "bytes")),
        sa.Column("digest", sa.Text()),
        sa.Column("hand", sa.Uuid()),
        *(sa.Column(name, sa.Text()) for name in ("error_code", "error_message", "request_id")),
        *(sa.Column(name, moment, server_default=now, nullable=False) for name in ("created_at", "touched_at")),
        *(sa.Column(name, moment) for name in ("begun_at", "finished_at")),
        sa.CheckConstraint("error_code IS NULL OR finished_at IS NOT NULL", name=op.f("datasets_failed_check")),
        sa.CheckConstraint("finished_at IS NULL OR hand IS NULL", name=op.f("datasets_finished_check")),
        sa.CheckConstraint(
            "(digest IS NOT NULL) = (finished_at IS NOT NULL AND error_code IS NULL)", name=op.f("datasets_ready_check")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("datasets_tenant_id_fkey")),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("datasets_batch_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("datasets_pkey")),
    )
    op.create_index("datasets_tenant_id_idx", "datasets", ["tenant_id", "id"])
    op.create_index("datasets_open_idx", "datasets", ["id"], postgresql_where=sa.text("finished_at IS NULL"))


def downgrade() -> None:
    op.drop_table("datasets")
    op.execute("DROP TYPE dataset_state")
