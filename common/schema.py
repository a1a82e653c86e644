"""The tables, as SQLAlchemy Core sees them. The migrations make them; `alembic check` holds the two together.

Whoever changes a state does it in `common.queue.jobs` or `common.queue.claim`; the enums and CHECKs here are the
second lock on that door. Rows are locked leases first, then batches, jobs, images, lanes, tenants, each by id.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from common.enums import BatchState, DatasetState, ImageState, JobState, Tier, Via, WorkerState

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

Moment = DateTime(timezone=True)
tier_enum = Enum(Tier, name="tier", values_callable=lambda e: [m.value for m in e])
image_state_enum = Enum(ImageState, name="image_state", values_callable=lambda e: [m.value for m in e])
job_state_enum = Enum(JobState, name="job_state", values_callable=lambda e: [m.value for m in e])
worker_state_enum = Enum(WorkerState, name="worker_state", values_callable=lambda e: [m.value for m in e])
batch_state_enum = Enum(BatchState, name="batch_state", values_callable=lambda e: [m.value for m in e])
dataset_state_enum = Enum(DatasetState, name="dataset_state", values_callable=lambda e: [m.value for m in e])
via_enum = Enum(Via, name="via", values_callable=lambda e: [m.value for m in e])
lease_outcome_enum = Enum("published", "released", "lost", name="lease_outcome")

tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", Float, nullable=False, server_default="1"),
    # Virtual time of fair sharing: where the tenant's last microbatch began, and where its next one would begin.
    Column("served_from", Float, nullable=False, server_default="0"),
    Column("served", Float, nullable=False, server_default="0"),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("weight > 0", name="weight"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),  # HMAC-SHA256; the secret itself is stored nowhere
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("revoked_at", Moment),
)

acceptances = Table(
    "acceptances",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("licence", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("key_id", Uuid, ForeignKey("api_keys.id"), nullable=False),  # by whose hand
    Column("accepted_at", Moment, nullable=False, server_default=func.now()),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("format", Text, nullable=False),  # of a file of prompts, or png of a picture; its bytes are in storage
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("width", Integer),  # of a picture, in pixels
    Column("height", Integer),
    Column("encoding", Text),  # of a CSV file
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("used_at", Moment, nullable=False, server_default=func.now(), index=True),  # lately asked for
    Index("uploads_tenant_id_idx", "tenant_id", "id"),
)

# How far a batch has come: its file is read up to `offset`, and the jobs of places below `jobs` are there. What has
# become of their images its lanes count.
batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("upload_id", Uuid, ForeignKey("uploads.id"), nullable=False, index=True),
    Column("parent_id", Uuid, ForeignKey("batches.id")),  # whose failed images it draws again
    Column("name", Text, nullable=False, server_default=""),
    Column("tier", tier_enum, nullable=False),
    Column("plan", JSONB, nullable=False),  # how a prompt becomes a recipe
    Column(
        "state",
        batch_state_enum,
        Computed(
            "CASE WHEN finished_at IS NOT NULL THEN 'ended'::batch_state"
            " WHEN paused_at IS NOT NULL THEN 'paused'::batch_state"
            " WHEN expanded_at IS NOT NULL THEN 'running'::batch_state"
            " WHEN checked_at IS NOT NULL THEN 'expanding'::batch_state ELSE 'checking'::batch_state END",
            persisted=True,
        ),
        nullable=False,
    ),
    Column("prompts", BigInteger),  # in its file; unknown until it is checked
    Column("skipped", BigInteger, nullable=False, server_default="0"),  # lines of it that are none, and why: `skips`
    Column("variants", Integer, nullable=False, server_default="1"),  # the jobs that each of them becomes
    Column("offset", BigInteger, nullable=False, server_default="0"),
    Column("line", BigInteger, nullable=False, server_default="0"),
    Column("jobs", BigInteger, nullable=False, server_default="0"),
    Column("images", BigInteger, nullable=False, server_default="0"),
    Column("settled", BigInteger, nullable=False, server_default="0"),  # of a cancelled one: places that are done with
    Column("warned", BigInteger, nullable=False, server_default="0"),  # prompts that there is something to warn of
    Column("warnings", ARRAY(Text), nullable=False, server_default="{}"),  # of the first of them
    Column(
        "pace", JSONB, nullable=False, server_default="[]"
    ),  # how many images had ended when: see `common.batches.throughput`
    Column("stop_rule", JSONB),  # when it pauses by itself
    Column("paused_because", Text),  # why it last did
    Column("error_code", Text),
    Column("error_message", Text),
    Column("request_id", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("touched_at", Moment, nullable=False, server_default=func.now()),  # when a control worker was last at it
    Column("checked_at", Moment),
    Column("expanded_at", Moment),
    Column("paused_at", Moment),
    Column("cancelled_at", Moment),
    Column("finished_at", Moment),
    CheckConstraint("expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts * variants)", name="expanded"),
    Index("batches_tenant_id_idx", "tenant_id", "id"),
    Index("batches_open_idx", "id", postgresql_where=text("finished_at IS NULL")),
    Index(  # one that was cancelled may have a follower
        "batches_parent_id_idx",
        "parent_id",
        "cancelled_at",
        unique=True,
        postgresql_where=text("parent_id IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint("paused_because IS NULL OR stop_rule IS NOT NULL", name="stop_rule"),
)

skips = Table(
    "skips",
    metadata,
    Column("batch_id", Uuid, ForeignKey("batches.id"), primary_key=True),
    Column("line", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
)

# How far a dataset has come: all splits before this one are written, and of this one the shards below `shard`, from the
# prompts of places below `place`. `written` are the images of the shard in hand that are done.
datasets = Table(
    "datasets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("batch_id", Uuid, ForeignKey("batches.id"), nullable=False),
    Column("retries", ARRAY(Uuid), nullable=False, server_default="{}"),  # of the batch, whose pictures count too
    Column("plan", JSONB, nullable=False),  # how it is to be written
    Column(
        "state",
        dataset_state_enum,
        Computed(
            "CASE WHEN error_code IS NOT NULL THEN 'failed'::dataset_state"
            " WHEN finished_at IS NOT NULL THEN 'ready'::dataset_state"
            " WHEN begun_at IS NOT NULL THEN 'writing'::dataset_state ELSE 'waiting'::dataset_state END",
            persisted=True,
        ),
        nullable=False,
    ),
    Column("split", SmallInteger, nullable=False, server_default="0"),
    Column("shard", Integer, nullable=False, server_default="0"),
    Column("place", BigInteger, nullable=False, server_default="0"),
    Column("written", BigInteger, nullable=False, server_default="0"),
    Column("shards", Integer, nullable=False, server_default="0"),  # that are done, of all splits; in them:
    Column("images", BigInteger, nullable=False, server_default="0"),
    Column("pictures", BigInteger, nullable=False, server_default="0"),
    Column("files", BigInteger),
    Column("bytes", BigInteger),
    Column("digest", Text),  # sha256 of its SHA256SUMS, and so of every byte of it
    Column("hand", Uuid),  # the fence: which call of which control worker is at it
    Column("error_code", Text),
    Column("error_message", Text),
    Column("request_id", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("touched_at", Moment, nullable=False, server_default=func.now()),  # when a control worker was last at it
    Column("begun_at", Moment),
    Column("finished_at", Moment),
    CheckConstraint("error_code IS NULL OR finished_at IS NOT NULL", name="failed"),
    CheckConstraint("finished_at IS NULL OR hand IS NULL", name="finished"),
    CheckConstraint("(digest IS NOT NULL) = (finished_at IS NOT NULL AND error_code IS NULL)", name="ready"),
    Index("datasets_tenant_id_idx", "tenant_id", "id"),
    Index("datasets_open_idx", "id", postgresql_where=text("finished_at IS NULL")),
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("tier", tier_enum, nullable=False),
    Column("model", Text, nullable=False),
    Column("compatibility", Text, nullable=False),
    Column("batch_id", Uuid, ForeignKey("batches.id")),
    Column("closed", Boolean, nullable=False, server_default="false"),  # nothing of it is claimed or started
    Column("open", BigInteger, nullable=False),  # images that have not ended; those that have, by how:
    Column("stored", BigInteger, nullable=False, server_default="0"),
    Column("flagged", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("cancelled", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("open >= 0", name="open"),
    UniqueConstraint("tenant_id", "tier", "compatibility", "batch_id", postgresql_nulls_not_distinct=True),
    Index("lanes_open_idx", "model", postgresql_where=text("open > 0")),
    Index("lanes_batch_id_idx", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("parent_id", Uuid, ForeignKey("jobs.id")),
    Column("batch_id", Uuid, ForeignKey("batches.id")),
    Column("place", BigInteger),  # in its batch
    Column("tier", tier_enum, nullable=False),
    Column("state", job_state_enum, nullable=False, server_default=JobState.QUEUED),
    Column("recipe", JSONB, nullable=False),
    Column("model", Text, Computed("recipe ->> 'model'", persisted=True), nullable=False),
    Column("warnings", ARRAY(Text), nullable=False, server_default="{}"),
    Column("count", Integer, nullable=False),
    Column("open", Integer, nullable=False),  # images that have not ended
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("request_id", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("started_at", Moment),
    Column("finished_at", Moment),
    Column("deadline", Moment),  # not done by then, it fails with `expired`
    CheckConstraint("count > 0", name="count"),
    CheckConstraint("open BETWEEN 0 AND count", name="open"),
    CheckConstraint("(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="finished"),
    CheckConstraint("(open = 0) = (state IN ('succeeded', 'failed', 'cancelled'))", name="settled"),
    CheckConstraint("(batch_id IS NULL) = (place IS NULL)", name="place"),
    Index("jobs_tenant_id_idx", "tenant_id", "id"),
    Index("jobs_batch_id_idx", "batch_id", "place", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
    Index("jobs_running_idx", "batch_id", postgresql_where=text("state = 'running' AND batch_id IS NOT NULL")),
    Index("jobs_parent_id_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("jobs_open_idx", "tenant_id", "id", postgresql_where=text("finished_at IS NULL")),
    Index("jobs_state_idx", "tenant_id", "state", "id", postgresql_where=text("state <> 'queued'")),
    Index(  # for the search in prompts: a single character has to be found, too
        "jobs_prompt_idx", text("string_to_array(lower(recipe ->> 'prompt'), NULL)"), postgresql_using="gin"
    ),
    Index("jobs_deadline_idx", "deadline", postgresql_where=text("deadline IS NOT NULL AND finished_at IS NULL")),
    postgresql_with={"fillfactor": "85"},
)

images = Table(
    "images",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("job_id", Uuid, ForeignKey("jobs.id"), nullable=False),
    Column("lane_id", BigInteger, ForeignKey("lanes.id"), nullable=False),
    Column("index", SmallInteger, nullable=False),
    Column("state", image_state_enum, nullable=False, server_default=ImageState.QUEUED),
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    Column("not_before", Moment),  # backing off; the sweep clears it when the time has come
    Column("lease_id", Uuid),  # the fence: whose hand may change this row. No foreign key: leases are pruned
    Column("key", Text),
    Column("sha256", Text),
    Column("bytes", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("render_ms", Integer),
    Column("store_ms", Integer),
    Column("started_at", Moment),
    Column("finished_at", Moment),
    UniqueConstraint("job_id", "index"),
    CheckConstraint(
        "(finished_at IS NOT NULL) = (state IN ('stored', 'flagged', 'failed', 'cancelled'))", name="finished"
    ),
    CheckConstraint("state <> 'running' OR lease_id IS NOT NULL", name="leased"),
    CheckConstraint(
        "(state = 'stored') = (key IS NOT NULL AND sha256 IS NOT NULL AND bytes IS NOT NULL)", name="stored"
    ),
    CheckConstraint("not_before IS NULL OR (state = 'queued' AND lease_id IS NULL)", name="not_before"),
    Index(
        "images_waiting_idx",
        "lane_id",
        "id",
        postgresql_where=text("state = 'queued' AND lease_id IS NULL AND not_before IS NULL"),
    ),
    Index(
        "images_ended_idx",
        "lane_id",
        "state",
        "finished_at",
        "id",
        postgresql_where=text("state IN ('stored', 'flagged', 'failed')"),
    ),
    Index("images_not_before_idx", "not_before", postgresql_where=text("not_before IS NOT NULL")),
    postgresql_with={
        "fillfactor": "85",
        "autovacuum_vacuum_scale_factor": "0.01",
        "autovacuum_vacuum_insert_scale_factor": "0.05",
    },
)

leases = Table(
    "leases",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("worker_id", Uuid, nullable=False),
    Column("image_ids", ARRAY(Uuid), nullable=False),
    Column("claimed_at", Moment, nullable=False, server_default=func.now()),
    Column("started_at", Moment),
    Column("expires_at", Moment, nullable=False),  # never indexed: renewing it must stay a HOT update
    Column("ended_at", Moment),
    Column("outcome", lease_outcome_enum),
    Column("unclean", Boolean, nullable=False, server_default="true"),  # may have stored what no image shows
    CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
    Index("leases_open_idx", "worker_id", postgresql_where=text("ended_at IS NULL")),
    Index("leases_unclean_idx", "ended_at", postgresql_where=text("unclean AND ended_at IS NOT NULL")),
    Index("leases_image_ids_idx", "image_ids", postgresql_using="gin"),
    postgresql_with={"fillfactor": "70"},
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),  # made at each start of the process
    Column("name", Text, nullable=False),
    Column("class", JSONB, nullable=False),  # device kind, versions, precision: whose pictures are comparable
    Column("models", ARRAY(Text), nullable=False),  # that it serves
    Column("resident", ARRAY(Text), nullable=False, server_default="{}"),  # that are in its memory
    Column("refusals", JSONB, nullable=False, server_default="{}"),  # model → why it will not serve it
    Column("seconds_per_image", JSONB, nullable=False, server_default="{}"),  # model → lately measured
    Column("capacity", JSONB, nullable=False, server_default="{}"),  # model → images of one pipeline call
    Column("state", worker_state_enum, nullable=False, server_default=WorkerState.STARTING),
    Column("reason", Text),  # why it drains or stopped
    Column("started_at", Moment, nullable=False, server_default=func.now()),
    Column("seen_at", Moment, nullable=False, server_default=func.now()),
    Index("workers_alive_idx", "seen_at", postgresql_where=text("state <> 'stopped'")),
    postgresql_with={"fillfactor": "50"},
)

revisions = Table(
    "revisions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("revision", Text, nullable=False),  # the hub commit that all workers use from the first import on
    Column("recorded_at", Moment, nullable=False, server_default=func.now()),
)

capacities = Table(
    "capacities",
    metadata,
    Column("worker_class", Text, primary_key=True),  # a digest of it: found once for all workers of a class
    Column("model", Text, primary_key=True),
    Column("images", Integer, nullable=False),
    Column("found_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("images > 0", name="images"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("made_id", Uuid, nullable=False),  # the job or batch that the request made
    Column("created_at", Moment, nullable=False, server_default=func.now(), index=True),
)

# Who did what. Written by `common.accounts.audit` in the transaction of the deed.
audit = Table(
    "audit",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("at", Moment, nullable=False, server_default=func.now(), index=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("key_id", Uuid, ForeignKey("api_keys.id"), nullable=False),  # by whose hand
    Column("via", via_enum, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text),  # an id or a name; null: whatever matched a filter
    Column("detail", JSONB, nullable=False, server_default="{}"),
    Column("request_id", Text),
    Index("audit_tenant_id_idx", "tenant_id", "id"),
)

# How many images of all lanes of a model and tier had ended, at the first sweep of a minute. The differences of
# neighbours are what the charts show. `common.queue.samples` writes them.
samples = Table(
    "samples",
    metadata,
    Column("minute", Moment, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("tier", tier_enum, primary_key=True),
    Column("stored", BigInteger, nullable=False),
    Column("flagged", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
)
