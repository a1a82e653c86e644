"""The first tables

The farm runs while this does: the old code before it, both during it, the new code after it.
- Add columns as NULL or with a constant default; add CHECKs and foreign keys NOT VALID, validate in a later migration.
- Make indexes on large tables CONCURRENTLY, in a migration of their own (`with op.get_context().autocommit_block():`).
- Rename or drop only what no accepted release reads: first stop reading, release, then drop.
- Fill old rows from a control worker in chunks, never in one UPDATE here.
- Add the new revision to ACCEPTED_REVISIONS in common/db.py; take the old one out one release later.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("image_ids", sa.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Enum("published", "released", "lost", name="lease_outcome"), nullable=True),
        sa.Column("unclean", sa.Boolean(), server_default="true", nullable=False),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name=op.f("leases_ended_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("leases_pkey")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("leases_image_ids_idx", "leases", ["image_ids"], unique=False, postgresql_using="gin")
    op.create_index(
        "leases_open_idx", "leases", ["worker_id"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(
        "leases_unclean_idx",
        "leases",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("unclean AND ended_at IS NOT NULL"),
    )
    op.create_table(
        "revisions",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("revisions_pkey")),
    )
    op.create_table(
        "tenants",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), server_default="1", nullable=False),
        sa.Column("served_from", sa.Float(), server_default="0", nullable=False),
        sa.Column("served", sa.Float(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("weight > 0", name=op.f("tenants_weight_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("tenants_pkey")),
        sa.UniqueConstraint("name", name=op.f("tenants_name_key")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("class", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("models", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("resident", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("refusals", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("seconds_per_image", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column(
            "state",
            sa.Enum("starting", "ready", "draining", "stopped", name="worker_state"),
            server_default="starting",
            nullable=False,
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("workers_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_index(
        "workers_alive_idx", "workers", ["seen_at"], unique=False, postgresql_where=sa.text("state <> 'stopped'")
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("api_keys_tenant_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("digest", name=op.f("api_keys_digest_key")),
    )
    op.create_index(op.f("api_keys_tenant_id_idx"), "api_keys", ["tenant_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("idempotency_keys_tenant_id_fkey")),
        sa.PrimaryKeyConstraint("tenant_id", "route", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index(op.f("idempotency_keys_created_at_idx"), "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("tier", sa.Enum("interactive", "standard", "bulk", name="tier"), nullable=False),
        sa.Column(
            "state",
            sa.Enum("queued", "running", "succeeded", "failed", "cancelled", name="job_state"),
            server_default="queued",
            nullable=False,
        ),
        sa.Column("recipe", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("model", sa.Text(), sa.Computed("recipe ->> 'model'", persisted=True), nullable=False),
        sa.Column("warnings", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("open", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))",
            name=op.f("jobs_finished_check"),
        ),
        sa.CheckConstraint(
            "(open = 0) = (state IN ('succeeded', 'failed', 'cancelled'))", name=op.f("jobs_settled_check")
        ),
        sa.CheckConstraint("count > 0", name=op.f("jobs_count_check")),
        sa.CheckConstraint("open BETWEEN 0 AND count", name=op.f("jobs_open_check")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("jobs_parent_id_fkey")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("jobs_tenant_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("jobs_pkey")),
        postgresql_with={"fillfactor": "85"},
    )
    op.create_index(
        "jobs_deadline_idx",
        "jobs",
        ["deadline"],
        unique=False,
        postgresql_where=sa.text("deadline IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index(
        "jobs_open_idx", "jobs", ["tenant_id", "id"], unique=False, postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index(
        "jobs_parent_id_idx", "jobs", ["parent_id"], unique=False, postgresql_where=sa.text("parent_id IS NOT NULL")
    )
    op.create_index("jobs_tenant_id_idx", "jobs", ["tenant_id", "id"], unique=False)
    op.create_table(
        "lanes",
        sa.Column("id", sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.Uuid(), nullable=False),
        sa.Column("tier", sa.Enum("interactive", "standard", "bulk", name="tier"), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("compatibility", sa.Text(), nullable=False),
        sa.Column("open", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("lanes_tenant_id_fkey")),
        sa.CheckConstraint("open >= 0", name=op.f("lanes_open_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("lanes_pkey")),
        sa.UniqueConstraint("tenant_id", "tier", "compatibility", name=op.f("lanes_tenant_id_tier_compatibility_key")),
    )
    op.create_index("lanes_open_idx", "lanes", ["model"], unique=False, postgresql_where=sa.text("open > 0"))
    op.create_table(
        "images",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("index", sa.SmallInteger(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("queued", "running", "stored", "flagged", "failed", "cancelled", name="image_state"),
            server_default="queued",
            nullable=False,
        ),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_id", sa.Uuid(), nullable=True),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("bytes", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("render_ms", sa.Integer(), nullable=True),
        sa.Column("store_ms", sa.Integer(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('stored', 'flagged', 'failed', 'cancelled'))",
            name=op.f("images_finished_check"),
        ),
        sa.CheckConstraint(
            "(state = 'stored') = (key IS NOT NULL AND sha256 IS NOT NULL AND bytes IS NOT NULL)",
            name=op.f("images_stored_check"),
        ),
        sa.CheckConstraint(
            "not_before IS NULL OR (state = 'queued' AND lease_id IS NULL)", name=op.f("images_not_before_check")
        ),
        sa.CheckConstraint("state <> 'running' OR lease_id IS NOT NULL", name=op.f("images_leased_check")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("images_job_id_fkey")),
        sa.ForeignKeyConstraint(["lane_id"], ["lanes.id"], name=op.f("images_lane_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("images_pkey")),
        sa.UniqueConstraint("job_id", "index", name=op.f("images_job_id_index_key")),
        postgresql_with={
            "fillfactor": "85",
            "autovacuum_vacuum_scale_factor": "0.01",
            "autovacuum_vacuum_insert_scale_factor": "0.05",
        },
    )
    op.create_index(
        "images_not_before_idx",
        "images",
        ["not_before"],
        unique=False,
        postgresql_where=sa.text("not_before IS NOT NULL"),
    )
    op.create_index(
        "images_waiting_idx",
        "images",
        ["lane_id", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued' AND lease_id IS NULL AND not_before IS NULL"),
    )


def downgrade() -> None:
    for table in (
        "idempotency_keys",
        "revisions",
        "workers",
        "leases",
        "images",
        "jobs",
        "lanes",
        "api_keys",
        "tenants",
    ):
        op.drop_table(table)
    for enum in ("tier", "job_state", "image_state", "worker_state", "lease_outcome"):
        op.execute(f"DROP TYPE {enum}")
