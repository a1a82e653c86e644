"""The tables as SQLAlchemy Core describes them. The migrations create them; `alembic check` compares the two.

Every change of a state is a statement of `common.queue`, `common.batches` or `common.datasets`; the enums and CHECKs
refuse a statement that is wrong. Lock order: leases, batches, jobs, images, lanes, tenants, each by id.
"""

from typing import Any

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    Date,
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


def columns_of(table: Table, alias: str = "") -> str:
    """The columns that this code knows, for what a statement returns.

    Never `*` there: after a migration has added a column, a statement that Postgres has prepared would return more than
    it did, which Postgres refuses.
    """
    return ", ".join(f'{alias or table.name}."{column.name}"' for column in table.columns)


def shown(table: str = "jobs") -> str:
    """The condition that a row of jobs or lanes is not of a batch that is being deleted: see `common.deletion`."""
    batch_id = f"{table}.batch_id" if table else "batch_id"
    deleted = "SELECT id FROM batches WHERE batches.deleted_at IS NOT NULL"
    return f"({batch_id} IS NULL OR {batch_id} NOT IN ({deleted}))"


# Which code works with these tables: see `common.db`. `revision` is the number of the newest migration.
schema_version = Table(
    "schema_version",
    metadata,
    Column("is_only_row", Boolean, primary_key=True, server_default="true"),
    Column("revision", Integer, nullable=False),
    Column("oldest_code", Integer, nullable=False),
    CheckConstraint("is_only_row", name="is_only_row"),
)

# Whose database this is: see `common.accounts.farm`.
farm = Table(
    "farm",
    metadata,
    Column("is_only_row", Boolean, primary_key=True, server_default="true"),
    Column("id", Uuid, nullable=False),
    Column("pepper_digest", Text),  # null: no process that has the pepper was started yet
    Column("bucket_marked_at", Moment),  # since then a bucket without the farm's id is another one
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    CheckConstraint("is_only_row", name="is_only_row"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("weight", Float, nullable=False, server_default="1"),
    # Fair queueing: the virtual time at which the tenant's last microbatch started, and at which its next one would.
    Column("virtual_start", Float, nullable=False, server_default="0"),
    Column("virtual_time", Float, nullable=False, server_default="0"),
    Column("lower_start", Float, nullable=False, server_default="0"),  # the same of the lower tiers' turns alone
    Column("lower_time", Float, nullable=False, server_default="0"),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("limits", JSONB, nullable=False, server_default="{}"),  # by name; what is missing is as in the settings
    Column("tiers", ARRAY(tier_enum)),  # it may use; null: all
    Column("keep_pictures_days", Integer),  # after a job has ended; null: for good
    Column("keep_rows_days", Integer),
    Column("suspended_at", Moment),  # since then its keys are refused and nothing of it is claimed
    CheckConstraint("weight > 0", name="weight"),
    CheckConstraint("keep_pictures_days > 0", name="keep_pictures_days"),
    CheckConstraint("keep_rows_days > 0", name="keep_rows_days"),
)

# The images that a tenant submitted on its last day (UTC), and the bytes that it stores: see
# `common.accounts.admission`.
image_days = Table(
    "image_days",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("day", Date, nullable=False),
    Column("images", BigInteger, nullable=False),
)
stored_bytes = Table(
    "stored_bytes",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("counted_at", Moment, nullable=False, server_default=func.now()),
    Column("seconds", REAL, nullable=False, server_default="0"),  # that the count took
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
    Column("expires_at", Moment),  # null: never
)

ended_sessions = Table(
    "ended_sessions",
    metadata,
    Column("key_id", Uuid, ForeignKey("api_keys.id"), primary_key=True),
    Column("signed_in_at", Moment, primary_key=True),
)

licence_acceptances = Table(
    "licence_acceptances",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    Column("licence", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("key_id", Uuid, ForeignKey("api_keys.id"), nullable=False),  # who did it
    Column("accepted_at", Moment, nullable=False, server_default=func.now()),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("format", Text, nullable=False),  # of the prompt file, or png; the bytes are in storage
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("width", Integer),  # of a picture, in pixels
    Column("height", Integer),
    Column("encoding", Text),  # of text when it was uploaded; UTF-16 is stored as UTF-8
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("used_at", Moment, nullable=False, server_default=func.now(), index=True),  # when it was last referred to
    Index("uploads_tenant_id_idx", "tenant_id", "id"),
)

# Progress of a batch: its file is read up to byte `offset`; the jobs at positions below `jobs` exist. Its lanes count
# their images.
batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("upload_id", Uuid, ForeignKey("uploads.id"), nullable=False, index=True),
    Column("parent_id", Uuid, ForeignKey("batches.id")),  # of a retry: the batch whose failed images it renders again
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
    Column("prompts", BigInteger),  # in its file; null until it is checked
    Column("skipped", BigInteger, nullable=False, server_default="0"),  # lines; why is in `skipped_lines`
    Column("variants", Integer, nullable=False, server_default="1"),  # jobs per prompt
    Column("offset", BigInteger, nullable=False, server_default="0"),
    Column("line", BigInteger, nullable=False, server_default="0"),
    Column("jobs", BigInteger, nullable=False, server_default="0"),
    Column("images", BigInteger, nullable=False, server_default="0"),
    Column("expected", BigInteger),  # images, if that was known at the submission
    Column("counted", BigInteger, nullable=False, server_default="0"),  # images of the lines that were checked
    Column("settled", BigInteger, nullable=False, server_default="0"),  # of a cancelled batch: positions below are done
    Column("warned", BigInteger, nullable=False, server_default="0"),  # prompts with a warning
    Column("warnings", ARRAY(Text), nullable=False, server_default="{}"),  # the first of them
    Column("progress_samples", JSONB, nullable=False, server_default="[]"),  # see `common.batches.throughput`
    Column("stop_rule", JSONB),  # when it pauses automatically
    Column("paused_because", Text),  # why it last paused automatically
    Column("error_code", Text),
    Column("error_message", Text),
    Column("failures", SmallInteger, nullable=False, server_default="0"),  # unforeseen ones, since the last success
    Column("retry_at", Moment),  # no control worker works on it before
    # Turns that have not ended, since it last came further: the processes work on it, or died.
    Column("open_turns", SmallInteger, nullable=False, server_default="0"),
    Column("request_id", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("touched_at", Moment, nullable=False, server_default=func.now()),  # when a control worker last worked on it
    Column("checked_at", Moment),
    Column("expanded_at", Moment),
    Column("paused_at", Moment),
    Column("cancelled_at", Moment),
    Column("finished_at", Moment),
    Column("needs_code", Integer, nullable=False, server_default="1"),  # the least CODE that may work on it
    Column("key_id", Uuid),  # as of jobs
    Column("deleted_at", Moment),  # since then nobody sees it, its jobs and its images; their rows go step by step
    Column("kept", JSONB, nullable=False, server_default="[]"),  # name and kind of each column that its jobs keep
    CheckConstraint("expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts * variants)", name="expanded"),
    Index("batches_tenant_id_idx", "tenant_id", "id"),
    Index("batches_open_idx", "id", postgresql_where=text("finished_at IS NULL")),
    Index("batches_deleted_at_idx", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("batches_internal_error_idx", "tenant_id", postgresql_where=text("error_code = 'internal_error'")),
    Index(  # one retry of a batch at a time; cancelled ones do not count
        "batches_parent_id_idx",
        "parent_id",
        "cancelled_at",
        unique=True,
        postgresql_where=text("parent_id IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    ),
    CheckConstraint("paused_because IS NULL OR stop_rule IS NOT NULL", name="stop_rule"),
)

skipped_lines = Table(
    "skipped_lines",
    metadata,
    Column("batch_id", Uuid, ForeignKey("batches.id"), primary_key=True),
    Column("line", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
)

# Progress of a dataset: all splits below `split` are written, and of this one the shards below `shard`, from the jobs
# at positions below `position`. `written` counts the images of the current shard that were written, by the turn that
# came furthest.
datasets = Table(
    "datasets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("batch_id", Uuid, nullable=False),  # which may be deleted
    Column("retries", ARRAY(Uuid), nullable=False, server_default="{}"),  # of the batch; their images count too
    Column("plan", JSONB, nullable=False),  # layout and splits
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
    Column("position", BigInteger, nullable=False, server_default="0"),
    Column("written", BigInteger, nullable=False, server_default="0"),
    Column("shards", Integer, nullable=False, server_default="0"),  # finished, of all splits; in them:
    Column("images", BigInteger, nullable=False, server_default="0"),
    Column("pictures", BigInteger, nullable=False, server_default="0"),
    Column("files", BigInteger),
    Column("bytes", BigInteger),
    Column("digest", Text),  # sha256 of its SHA256SUMS
    Column("owner_id", Uuid),  # the fence: the call that writes it now
    Column("error_code", Text),
    Column("error_message", Text),
    Column("failures", SmallInteger, nullable=False, server_default="0"),  # unforeseen ones, since the last success
    Column("retry_at", Moment),  # no control worker works on it before
    Column("open_turns", SmallInteger, nullable=False, server_default="0"),  # as of batches
    Column("request_id", Text),
    Column("created_at", Moment, nullable=False, server_default=func.now()),
    Column("touched_at", Moment, nullable=False, server_default=func.now()),  # when a control worker last worked on it
    Column("begun_at", Moment),
    Column("finished_at", Moment),
    Column("needs_code", Integer, nullable=False, server_default="1"),  # the least CODE that may work on it
    Column("stale_at", Moment),  # since then a picture that it may show is deleted
    CheckConstraint("error_code IS NULL OR finished_at IS NOT NULL", name="failed"),
    CheckConstraint("finished_at IS NULL OR owner_id IS NULL", name="finished"),
    CheckConstraint("(digest IS NOT NULL) = (finished_at IS NOT NULL AND error_code IS NULL)", name="ready"),
    Index("datasets_tenant_id_idx", "tenant_id", "id"),
    Index("datasets_open_idx", "id", postgresql_where=text("finished_at IS NULL")),
    Index("datasets_internal_error_idx", "tenant_id", postgresql_where=text("error_code = 'internal_error'")),
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
    Column("closed", Boolean, nullable=False, server_default="false"),  # its images are not claimed or started
    Column("open", BigInteger, nullable=False),  # images that have not ended; then the ended ones by state
    Column("stored", BigInteger, nullable=False, server_default="0"),
    Column("flagged", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("cancelled", BigInteger, nullable=False, server_default="0"),
    Column("needs_code", Integer, nullable=False, server_default="1"),  # the least CODE that may render its images
    Column("counted_at", Moment),  # when ended images were last counted here
    # Of the ended images, those whose rows are deleted: the counters go on counting them.
    Column("deleted_stored", BigInteger, nullable=False, server_default="0"),
    Column("deleted_flagged", BigInteger, nullable=False, server_default="0"),
    Column("deleted_failed", BigInteger, nullable=False, server_default="0"),
    Column("deleted_cancelled", BigInteger, nullable=False, server_default="0"),
    Column("pictures_kept_from", Moment),  # those that were stored before are deleted; null: none is
    CheckConstraint("open >= 0", name="open"),
    UniqueConstraint("tenant_id", "tier", "compatibility", "batch_id", postgresql_nulls_not_distinct=True),
    Index("lanes_open_idx", "model", postgresql_where=text("open > 0")),
    Index("lanes_batch_id_idx", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
)

# Ended images that the counters of a lane do not contain yet: see `common.queue.lanes`. Without a key to `lanes`, whose
# check would write the row of the lane.
lane_changes = Table(
    "lane_changes",
    metadata,
    Column("lane_id", BigInteger, nullable=False),
    Column("ended", Integer, nullable=False),  # of these, by state:
    Column("stored", Integer, nullable=False),
    Column("flagged", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled", Integer, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("parent_id", Uuid, ForeignKey("jobs.id")),
    Column("batch_id", Uuid, ForeignKey("batches.id")),
    Column("position", BigInteger),  # in its batch
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
    Column("deadline", Moment),  # then an unfinished job fails with `expired`
    # The API key that submitted it; null: nobody knows. Not a foreign key, whose check would lock the row of the key.
    Column("key_id", Uuid),
    Column("origin", JSONB),  # the row of the file that it comes from: see `common.recipes.origin`
    CheckConstraint("count > 0", name="count"),
    CheckConstraint("open BETWEEN 0 AND count", name="open"),
    CheckConstraint("(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))", name="finished"),
    CheckConstraint("(open = 0) = (state IN ('succeeded', 'failed', 'cancelled'))", name="settled"),
    CheckConstraint("(batch_id IS NULL) = (position IS NULL)", name="position"),
    Index("jobs_tenant_id_idx", "tenant_id", "id"),
    Index("jobs_batch_id_idx", "batch_id", "position", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
    Index("jobs_running_idx", "batch_id", postgresql_where=text("state = 'running' AND batch_id IS NOT NULL")),
    Index("jobs_parent_id_idx", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
    Index("jobs_open_idx", "tenant_id", "id", postgresql_where=text("finished_at IS NULL")),
    Index("jobs_state_idx", "tenant_id", "state", "id", postgresql_where=text("state <> 'queued'")),
    Index(  # for the search in prompts, by character: a prompt of Chinese may be one character
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
    Column("lane_id", BigInteger, nullable=False),  # without a key: its check would read all images to delete a lane
    Column("index", SmallInteger, nullable=False),
    Column("state", image_state_enum, nullable=False, server_default=ImageState.QUEUED),
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    Column("not_before", Moment),  # back-off; the sweep clears it when it has passed
    Column("lease_id", Uuid),  # the fence: which lease may change this row
    Column("key", Text),
    Column("sha256", Text),
    Column("bytes", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("render_ms", Integer),
    Column("store_ms", Integer),
    Column("started_at", Moment),
    Column("finished_at", Moment),
    Column("safety_score", REAL),  # of the safety checker: above 0 if it flagged the image; for operators only
    Column("safety_concept", SmallInteger),  # the number of the concept with that score
    Column("picture_deleted_at", Moment),  # of a stored image: its tenant keeps pictures no longer
    Column("earlier_leases", ARRAY(Uuid)),  # that gave it back: the last 20
    Column("failed_by", ARRAY(Text)),  # names of the workers at which an attempt of its own failed, or that it ended
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
    Index("images_flagged_idx", "finished_at", postgresql_where=text("state = 'flagged'")),
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
    Column("expires_at", Moment, nullable=False),  # never indexed, so that renewals stay HOT updates
    Column("ended_at", Moment),
    Column("outcome", lease_outcome_enum),
    Column(
        "needs_cleanup", Boolean, nullable=False, server_default="true"
    ),  # it may have stored objects that no image names
    CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended"),
    Index("leases_open_idx", "worker_id", postgresql_where=text("ended_at IS NULL")),
    Index("leases_needs_cleanup_idx", "ended_at", postgresql_where=text("needs_cleanup AND ended_at IS NOT NULL")),
    postgresql_with={"fillfactor": "70"},
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),  # new at each start of the process
    Column("name", Text, nullable=False),
    Column("class", JSONB, nullable=False),  # device kind, versions, precision
    Column("models", ARRAY(Text), nullable=False),  # that it serves
    Column("resident", ARRAY(Text), nullable=False, server_default="{}"),  # models in its memory
    Column("refusals", JSONB, nullable=False, server_default="{}"),  # model → why it refuses it
    Column("seconds_per_image", JSONB, nullable=False, server_default="{}"),  # by model, measured
    Column("capacity", JSONB, nullable=False, server_default="{}"),  # by model: images of one pipeline call
    Column("device_status", JSONB, nullable=False, server_default="[]"),  # how its devices do
    Column("state", worker_state_enum, nullable=False, server_default=WorkerState.STARTING),
    Column("reason", Text),  # why it drains or stopped
    Column("cannot_store_since", Moment),  # null: it can, or has not tried
    Column("started_at", Moment, nullable=False, server_default=func.now()),
    Column("seen_at", Moment, nullable=False, server_default=func.now()),
    Index("workers_alive_idx", "seen_at", postgresql_where=text("state <> 'stopped'")),
    postgresql_with={"fillfactor": "50"},
)

# Workers that claim nothing because their host is at fault: by name, for an id ends with its process.
quarantines = Table(
    "quarantines",
    metadata,
    Column("name", Text, primary_key=True),
    Column("quarantined_at", Moment, nullable=False, server_default=func.now()),
    Column("code", Text, nullable=False),  # of the sentence in `reason`
    Column("reason", Text, nullable=False),
    Column("model", Text),  # which its trial renders; null: any that it serves
    Column("known_picture", Text),  # the digest of the trial picture that its own differs from
    Column("trials", SmallInteger, nullable=False, server_default="0"),  # since then
    Column("retry_at", Moment, nullable=False),  # when the next trial is due
)

# The trial picture of a model on a class of workers, as the first of them rendered it.
trial_pictures = Table(
    "trial_pictures",
    metadata,
    Column("digest", Text, primary_key=True),  # of the class, the model and the trial's recipe
    Column("model", Text, nullable=False),
    Column("recorded_by", Text, nullable=False),  # the name of that worker
    Column("recorded_at", Moment, nullable=False, server_default=func.now()),
    Column("thumbnail", LargeBinary, nullable=False),
)

revisions = Table(
    "revisions",
    metadata,
    Column("model", Text, primary_key=True),
    Column("source", Text, nullable=False),
    Column("revision", Text, nullable=False),  # the hub commit that all workers use
    Column("recorded_at", Moment, nullable=False, server_default=func.now()),
)

batch_sizes = Table(
    "batch_sizes",
    metadata,
    Column("worker_class", Text, primary_key=True),  # its digest: all workers of a class share it
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
    Column("made_id", Uuid, nullable=False),  # the job, batch or dataset of the request
    Column("created_at", Moment, nullable=False, server_default=func.now(), index=True),
)

# What was deleted by its id: see `common.deletion`.
tombstones = Table(
    "tombstones",
    metadata,
    Column("id", Uuid, primary_key=True),  # of the job, batch, image, dataset or upload
    Column("kind", Text, nullable=False),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("key_id", Uuid, nullable=False),  # who did it
    Column("deleted_at", Moment, nullable=False, server_default=func.now()),
    Column("pictures_left", BigInteger, nullable=False, server_default="0"),  # in storage
    Column("finished_at", Moment),  # when nothing of it was left, neither rows nor bytes
    CheckConstraint("kind IN ('job', 'batch', 'image', 'dataset', 'upload')", name="kind"),
    Index("tombstones_unfinished_idx", "id", postgresql_where=text("finished_at IS NULL")),
)

# Bytes that nothing names any more, until they are deleted.
objects_to_delete = Table(
    "objects_to_delete",
    metadata,
    Column("key", Text, primary_key=True),  # that ends with / names all objects below
    Column("tombstone_id", Uuid),  # null: nobody asked, its time was over
    Column("is_picture", Boolean, nullable=False, server_default="false"),  # that was stored, and counted as left
    Column("lease_id", Uuid),  # which may store it yet; null: nothing does
    Column("due_at", Moment, nullable=False, server_default=func.now()),  # not before
    Column("again_at", Moment),  # and once more then: what was writing below a prefix has noticed by that time
    Index("objects_to_delete_due_at_idx", "due_at"),
    Index("objects_to_delete_tombstone_id_idx", "tombstone_id", postgresql_where=text("tombstone_id IS NOT NULL")),
)

# Who did what. `common.accounts.audit` writes it in the transaction of the change.
audit = Table(
    "audit",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("at", Moment, nullable=False, server_default=func.now(), index=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("key_id", Uuid, ForeignKey("api_keys.id"), nullable=False),  # who did it
    Column("via", via_enum, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text),  # an id or a name; null: the jobs that matched a filter
    Column("detail", JSONB, nullable=False, server_default="{}"),
    Column("request_id", Text),
    Column("address", Text),  # of the client, as the API saw it
    Column("acted_on_id", Uuid),  # the tenant whose it was, if it was another one
    Index("audit_tenant_id_idx", "tenant_id", "id"),
)

# The counters of all lanes of a model and tier, once a minute. Charts show the differences of neighbours.
lane_samples = Table(
    "lane_samples",
    metadata,
    Column("minute", Moment, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("tier", tier_enum, primary_key=True),
    Column("stored", BigInteger, nullable=False),
    Column("flagged", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
)


def _used() -> tuple[Column[Any], ...]:
    """What a tenant took. Without foreign keys: usage outlives the rows of jobs, keys and tenants."""
    return (
        Column("day", Date, nullable=False),  # in UTC
        Column("tenant_id", Uuid, nullable=False),
        Column("key_id", Uuid),  # null: nobody knows
        Column("model", Text, nullable=False),
        Column("tier", tier_enum, nullable=False),
        Column("images", BigInteger, nullable=False),
        Column("gpu_ms", BigInteger, nullable=False),
        Column("pixels", BigInteger, nullable=False),
        Column("bytes", BigInteger, nullable=False),
    )


# What leases have stored, until it is folded into its day: see `common.usage.ledger`.
usage_entries = Table("usage_entries", metadata, *_used())

usage_days = Table(
    "usage_days",
    metadata,
    *_used(),
    UniqueConstraint("tenant_id", "day", "key_id", "model", "tier", postgresql_nulls_not_distinct=True),
    Index("usage_days_day_idx", "day"),
)

# What fails for an unforeseen reason again and again, by step and, if it was one row, its id: see `common.failures`.
step_failures = Table(
    "step_failures",
    metadata,
    Column("step", Text, primary_key=True),
    Column("subject", Text, primary_key=True, server_default=""),
    Column("failures", Integer, nullable=False, server_default="1"),  # in a row
    Column("reference", Text, nullable=False),  # in the log, of the last one
    Column("since", Moment, nullable=False, server_default=func.now()),
    Column("failed_at", Moment, nullable=False, server_default=func.now()),
    Column("retry_at", Moment, nullable=False),
)
