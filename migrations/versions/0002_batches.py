"""Batches: uploads, lanes of their own with counters, and the capacity of workers

No release has the first revision yet, so what the code of before cannot work with (`made_id`) is renamed at once.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATE = (
    "CASE WHEN finished_at IS NOT NULL THEN 'ended'::batch_state"
    " WHEN paused_at IS NOT NULL THEN 'paused'::batch_state"
    " WHEN expanded_at IS NOT NULL THEN 'running'::batch_state"
    " WHEN checked_at IS NOT NULL THEN 'expanding'::batch_state ELSE 'checking'::batch_state END"
)


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    now = sa.text("now()")
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("uploads_tenant_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("uploads_pkey")),
    )
    op.create_index("uploads_tenant_id_idx", "uploads", ["tenant_id", "id"])
    states = postgresql.ENUM("ended", "paused", "running", "expanding", "checking", name="batch_state")
    states.create(op.get_bind())
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("upload_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("tier", postgresql.ENUM(name="tier", create_type=False), nullable=False),
        sa.Column("plan", postgresql.JSONB(), nullable=False),
        sa.Column(
            "state",
            postgresql.ENUM(name="batch_state", create_type=False),
            sa.Computed(STATE, persisted=True),
            nullable=False,
        ),
        sa.Column("prompts", sa.BigInteger()),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("offset", "line", "jobs", "images", "settled", "warned")
        ),
        sa.Column("warnings", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("request_id", sa.Text()),
        sa.Column("created_at", moment, server_default=now, nullable=False),
        sa.Column("touched_at", moment, server_default=now, nullable=False),
        *(
            sa.Column(name, moment)
            for name in ("checked_at", "expanded_at", "paused_at", "cancelled_at", "finished_at")
        ),
        sa.CheckConstraint(
            "expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts)", name=op.f("batches_expanded_check")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("batches_tenant_id_fkey")),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("batches_upload_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("batches_pkey")),
    )
    op.create_index("batches_tenant_id_idx", "batches", ["tenant_id", "id"])
    op.create_index("batches_open_idx", "batches", ["id"], postgresql_where=sa.text("finished_at IS NULL"))

    op.add_column("lanes", sa.Column("batch_id", sa.Uuid()))
    op.create_foreign_key(op.f("lanes_batch_id_fkey"), "lanes", "batches", ["batch_id"], ["id"])
    op.add_column("lanes", sa.Column("closed", sa.Boolean(), server_default="false", nullable=False))
    for name in ("stored", "flagged", "failed", "cancelled"):
        op.add_column("lanes", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.drop_constraint("lanes_tenant_id_tier_compatibility_key", "lanes")
    op.create_unique_constraint(
        op.f("lanes_tenant_id_tier_compatibility_batch_id_key"),
        "lanes",
        ["tenant_id", "tier", "compatibility", "batch_id"],
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("lanes_batch_id_idx", "lanes", ["batch_id"], postgresql_where=sa.text("batch_id IS NOT NULL"))

    op.add_column("jobs", sa.Column("batch_id", sa.Uuid()))
    op.create_foreign_key(op.f("jobs_batch_id_fkey"), "jobs", "batches", ["batch_id"], ["id"])
    op.add_column("jobs", sa.Column("place", sa.BigInteger()))
    op.create_check_constraint(op.f("jobs_place_check"), "jobs", "(batch_id IS NULL) = (place IS NULL)")
    op.create_index(
        "jobs_batch_id_idx",
        "jobs",
        ["batch_id", "place"],
        unique=True,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "jobs_running_idx",
        "jobs",
        ["batch_id"],
        postgresql_where=sa.text("state = 'running' AND batch_id IS NOT NULL"),
    )

    op.add_column("workers", sa.Column("capacity", postgresql.JSONB(), server_default="{}", nullable=False))
    op.create_table(
        "capacities",
        sa.Column("worker_class", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("found_at", moment, server_default=now, nullable=False),
        sa.CheckConstraint("images > 0", name=op.f("capacities_images_check")),
        sa.PrimaryKeyConstraint("worker_class", "model", name=op.f("capacities_pkey")),
    )
    op.alter_column("idempotency_keys", "job_id", new_column_name="made_id")


def downgrade() -> None:
    op.alter_column("idempotency_keys", "made_id", new_column_name="job_id")
    op.drop_table("capacities")
    op.drop_column("workers", "capacity")
    op.execute("DELETE FROM images USING jobs WHERE jobs.id = job_id AND batch_id IS NOT NULL")
    op.execute("DELETE FROM jobs WHERE batch_id IS NOT NULL")
    op.execute("DELETE FROM lanes WHERE batch_id IS NOT NULL")
    op.drop_constraint("jobs_place_check", "jobs")
    for name in ("batch_id", "place"):
        op.drop_column("jobs", name)
    op.drop_constraint("lanes_tenant_id_tier_compatibility_batch_id_key", "lanes")
    for name in ("batch_id", "closed", "stored", "flagged", "failed", "cancelled"):
        op.drop_column("lanes", name)
    op.create_unique_constraint(
        op.f("lanes_tenant_id_tier_compatibility_key"), "lanes", ["tenant_id", "tier", "compatibility"]
    )
    op.drop_table("batches")
    op.execute("DROP TYPE batch_state")
    op.drop_table("uploads")
