"""The initial tables"""

from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

ENUMS = """
    CREATE TYPE tier AS ENUM ('interactive', 'standard', 'bulk');
    CREATE TYPE job_state AS ENUM ('queued', 'running', 'succeeded', 'failed', 'cancelled');
    CREATE TYPE image_state AS ENUM ('queued', 'running', 'stored', 'flagged', 'failed', 'cancelled');
    CREATE TYPE lease_outcome AS ENUM ('published', 'released', 'lost');
    CREATE TYPE worker_state AS ENUM ('starting', 'ready', 'draining', 'stopped');
    CREATE TYPE batch_state AS ENUM ('ended', 'paused', 'running', 'expanding', 'checking');
    CREATE TYPE dataset_state AS ENUM ('failed', 'ready', 'writing', 'waiting');
    CREATE TYPE via AS ENUM ('api', 'dashboard', 'shell');
"""

ACCOUNTS = """
    CREATE TABLE tenants (
        id uuid PRIMARY KEY,
        name text NOT NULL UNIQUE,
        weight float NOT NULL DEFAULT 1,
        virtual_start float NOT NULL DEFAULT 0,
        virtual_time float NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT tenants_weight_check CHECK (weight > 0)
    );

    CREATE TABLE api_keys (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        name text NOT NULL,
        digest bytea NOT NULL UNIQUE,
        scopes text[] NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        revoked_at timestamptz
    );
    CREATE INDEX api_keys_tenant_id_idx ON api_keys (tenant_id);

    CREATE TABLE licence_acceptances (
        tenant_id uuid REFERENCES tenants,
        licence text,
        version text,
        key_id uuid NOT NULL REFERENCES api_keys,
        accepted_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant_id, licence, version)
    );

    CREATE TABLE idempotency_keys (
        tenant_id uuid REFERENCES tenants,
        route text,
        key text,
        fingerprint text NOT NULL,
        made_id uuid NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant_id, route, key)
    );
    CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at);

    CREATE TABLE audit (
        id uuid PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT now(),
        tenant_id uuid NOT NULL REFERENCES tenants,
        key_id uuid NOT NULL REFERENCES api_keys,
        via via NOT NULL,
        action text NOT NULL,
        subject text,
        detail jsonb NOT NULL DEFAULT '{}',
        request_id text
    );
    CREATE INDEX audit_at_idx ON audit (at);
    CREATE INDEX audit_tenant_id_idx ON audit (tenant_id, id);
"""

BATCHES = """
    CREATE TABLE uploads (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        format text NOT NULL,
        bytes bigint NOT NULL,
        sha256 text NOT NULL,
        width integer,
        height integer,
        encoding text,
        created_at timestamptz NOT NULL DEFAULT now(),
        used_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX uploads_tenant_id_idx ON uploads (tenant_id, id);
    CREATE INDEX uploads_used_at_idx ON uploads (used_at);

    CREATE TABLE batches (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        upload_id uuid NOT NULL REFERENCES uploads,
        parent_id uuid REFERENCES batches,
        name text NOT NULL DEFAULT '',
        tier tier NOT NULL,
        plan jsonb NOT NULL,
        state batch_state NOT NULL GENERATED ALWAYS AS (
            CASE WHEN finished_at IS NOT NULL THEN 'ended'::batch_state
                 WHEN paused_at IS NOT NULL THEN 'paused'::batch_state
                 WHEN expanded_at IS NOT NULL THEN 'running'::batch_state
                 WHEN checked_at IS NOT NULL THEN 'expanding'::batch_state
                 ELSE 'checking'::batch_state END) STORED,
        prompts bigint,
        skipped bigint NOT NULL DEFAULT 0,
        variants integer NOT NULL DEFAULT 1,
        "offset" bigint NOT NULL DEFAULT 0,
        line bigint NOT NULL DEFAULT 0,
        jobs bigint NOT NULL DEFAULT 0,
        images bigint NOT NULL DEFAULT 0,
        settled bigint NOT NULL DEFAULT 0,
        warned bigint NOT NULL DEFAULT 0,
        warnings text[] NOT NULL DEFAULT '{}',
        progress_samples jsonb NOT NULL DEFAULT '[]',
        stop_rule jsonb,
        paused_because text,
        error_code text,
        error_message text,
        request_id text,
        created_at timestamptz NOT NULL DEFAULT now(),
        touched_at timestamptz NOT NULL DEFAULT now(),
        checked_at timestamptz,
        expanded_at timestamptz,
        paused_at timestamptz,
        cancelled_at timestamptz,
        finished_at timestamptz,
        CONSTRAINT batches_expanded_check
            CHECK (expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts * variants)),
        CONSTRAINT batches_stop_rule_check CHECK (paused_because IS NULL OR stop_rule IS NOT NULL)
    );
    CREATE INDEX batches_tenant_id_idx ON batches (tenant_id, id);
    CREATE INDEX batches_upload_id_idx ON batches (upload_id);
    CREATE INDEX batches_open_idx ON batches (id) WHERE finished_at IS NULL;
    CREATE UNIQUE INDEX batches_parent_id_idx ON batches (parent_id, cancelled_at) NULLS NOT DISTINCT
        WHERE parent_id IS NOT NULL;

    CREATE TABLE skipped_lines (
        batch_id uuid REFERENCES batches,
        line bigint,
        reason text NOT NULL,
        PRIMARY KEY (batch_id, line)
    );

    CREATE TABLE datasets (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        batch_id uuid NOT NULL REFERENCES batches,
        retries uuid[] NOT NULL DEFAULT '{}',
        plan jsonb NOT NULL,
        state dataset_state NOT NULL GENERATED ALWAYS AS (
            CASE WHEN error_code IS NOT NULL THEN 'failed'::dataset_state
                 WHEN finished_at IS NOT NULL THEN 'ready'::dataset_state
                 WHEN begun_at IS NOT NULL THEN 'writing'::dataset_state
                 ELSE 'waiting'::dataset_state END) STORED,
        split smallint NOT NULL DEFAULT 0,
        shard integer NOT NULL DEFAULT 0,
        position bigint NOT NULL DEFAULT 0,
        written bigint NOT NULL DEFAULT 0,
        shards integer NOT NULL DEFAULT 0,
        images bigint NOT NULL DEFAULT 0,
        pictures bigint NOT NULL DEFAULT 0,
        files bigint,
        bytes bigint,
        digest text,
        owner_id uuid,
        error_code text,
        error_message text,
        request_id text,
        created_at timestamptz NOT NULL DEFAULT now(),
        touched_at timestamptz NOT NULL DEFAULT now(),
        begun_at timestamptz,
        finished_at timestamptz,
        CONSTRAINT datasets_failed_check CHECK (error_code IS NULL OR finished_at IS NOT NULL),
        CONSTRAINT datasets_finished_check CHECK (finished_at IS NULL OR owner_id IS NULL),
        CONSTRAINT datasets_ready_check
            CHECK ((digest IS NOT NULL) = (finished_at IS NOT NULL AND error_code IS NULL))
    );
    CREATE INDEX datasets_tenant_id_idx ON datasets (tenant_id, id);
    CREATE INDEX datasets_open_idx ON datasets (id) WHERE finished_at IS NULL;
"""

QUEUE = """
    CREATE TABLE lanes (
        id bigserial PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        tier tier NOT NULL,
        model text NOT NULL,
        compatibility text NOT NULL,
        batch_id uuid REFERENCES batches,
        closed boolean NOT NULL DEFAULT false,
        open bigint NOT NULL,
        stored bigint NOT NULL DEFAULT 0,
        flagged bigint NOT NULL DEFAULT 0,
        failed bigint NOT NULL DEFAULT 0,
        cancelled bigint NOT NULL DEFAULT 0,
        CONSTRAINT lanes_open_check CHECK (open >= 0),
        UNIQUE NULLS NOT DISTINCT (tenant_id, tier, compatibility, batch_id)
    );
    CREATE INDEX lanes_open_idx ON lanes (model) WHERE open > 0;
    CREATE INDEX lanes_batch_id_idx ON lanes (batch_id) WHERE batch_id IS NOT NULL;

    CREATE TABLE jobs (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        parent_id uuid REFERENCES jobs,
        batch_id uuid REFERENCES batches,
        position bigint,
        tier tier NOT NULL,
        state job_state NOT NULL DEFAULT 'queued',
        recipe jsonb NOT NULL,
        model text NOT NULL GENERATED ALWAYS AS (recipe ->> 'model') STORED,
        warnings text[] NOT NULL DEFAULT '{}',
        count integer NOT NULL,
        open integer NOT NULL,
        failed integer NOT NULL DEFAULT 0,
        error_code text,
        error_message text,
        request_id text,
        created_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        finished_at timestamptz,
        deadline timestamptz,
        CONSTRAINT jobs_count_check CHECK (count > 0),
        CONSTRAINT jobs_open_check CHECK (open BETWEEN 0 AND count),
        CONSTRAINT jobs_finished_check
            CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))),
        CONSTRAINT jobs_settled_check CHECK ((open = 0) = (state IN ('succeeded', 'failed', 'cancelled'))),
        CONSTRAINT jobs_position_check CHECK ((batch_id IS NULL) = (position IS NULL))
    ) WITH (fillfactor = 85);
    CREATE INDEX jobs_tenant_id_idx ON jobs (tenant_id, id);
    CREATE UNIQUE INDEX jobs_batch_id_idx ON jobs (batch_id, position) WHERE batch_id IS NOT NULL;
    CREATE INDEX jobs_running_idx ON jobs (batch_id) WHERE state = 'running' AND batch_id IS NOT NULL;
    CREATE INDEX jobs_parent_id_idx ON jobs (parent_id) WHERE parent_id IS NOT NULL;
    CREATE INDEX jobs_open_idx ON jobs (tenant_id, id) WHERE finished_at IS NULL;
    CREATE INDEX jobs_state_idx ON jobs (tenant_id, state, id) WHERE state <> 'queued';
    CREATE INDEX jobs_prompt_idx ON jobs USING gin (string_to_array(lower(recipe ->> 'prompt'), NULL));
    CREATE INDEX jobs_deadline_idx ON jobs (deadline) WHERE deadline IS NOT NULL AND finished_at IS NULL;

    CREATE TABLE images (
        id uuid PRIMARY KEY,
        job_id uuid NOT NULL REFERENCES jobs,
        lane_id bigint NOT NULL REFERENCES lanes,
        index smallint NOT NULL,
        state image_state NOT NULL DEFAULT 'queued',
        attempts smallint NOT NULL DEFAULT 0,
        not_before timestamptz,
        lease_id uuid,
        key text,
        sha256 text,
        bytes integer,
        error_code text,
        error_message text,
        render_ms integer,
        store_ms integer,
        started_at timestamptz,
        finished_at timestamptz,
        UNIQUE (job_id, index),
        CONSTRAINT images_finished_check
            CHECK ((finished_at IS NOT NULL) = (state IN ('stored', 'flagged', 'failed', 'cancelled'))),
        CONSTRAINT images_leased_check CHECK (state <> 'running' OR lease_id IS NOT NULL),
        CONSTRAINT images_stored_check
            CHECK ((state = 'stored') = (key IS NOT NULL AND sha256 IS NOT NULL AND bytes IS NOT NULL)),
        CONSTRAINT images_not_before_check CHECK (not_before IS NULL OR (state = 'queued' AND lease_id IS NULL))
    ) WITH (
        fillfactor = 85,
        autovacuum_vacuum_scale_factor = 0.01,
        autovacuum_vacuum_insert_scale_factor = 0.05
    );
    CREATE INDEX images_waiting_idx ON images (lane_id, id)
        WHERE state = 'queued' AND lease_id IS NULL AND not_before IS NULL;
    CREATE INDEX images_ended_idx ON images (lane_id, state, finished_at, id)
        WHERE state IN ('stored', 'flagged', 'failed');
    CREATE INDEX images_not_before_idx ON images (not_before) WHERE not_before IS NOT NULL;

    CREATE TABLE leases (
        id uuid PRIMARY KEY,
        worker_id uuid NOT NULL,
        image_ids uuid[] NOT NULL,
        claimed_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        expires_at timestamptz NOT NULL,
        ended_at timestamptz,
        outcome lease_outcome,
        needs_cleanup boolean NOT NULL DEFAULT true,
        CONSTRAINT leases_ended_check CHECK ((ended_at IS NULL) = (outcome IS NULL))
    ) WITH (fillfactor = 70);
    CREATE INDEX leases_open_idx ON leases (worker_id) WHERE ended_at IS NULL;
    CREATE INDEX leases_needs_cleanup_idx ON leases (ended_at) WHERE needs_cleanup AND ended_at IS NOT NULL;
    CREATE INDEX leases_image_ids_idx ON leases USING gin (image_ids);

    CREATE TABLE lane_samples (
        minute timestamptz,
        model text,
        tier tier,
        stored bigint NOT NULL,
        flagged bigint NOT NULL,
        failed bigint NOT NULL,
        cancelled bigint NOT NULL,
        PRIMARY KEY (minute, model, tier)
    );
"""

WORKERS = """
    CREATE TABLE workers (
        id uuid PRIMARY KEY,
        name text NOT NULL,
        class jsonb NOT NULL,
        models text[] NOT NULL,
        resident text[] NOT NULL DEFAULT '{}',
        refusals jsonb NOT NULL DEFAULT '{}',
        seconds_per_image jsonb NOT NULL DEFAULT '{}',
        capacity jsonb NOT NULL DEFAULT '{}',
        state worker_state NOT NULL DEFAULT 'starting',
        reason text,
        started_at timestamptz NOT NULL DEFAULT now(),
        seen_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 50);
    CREATE INDEX workers_alive_idx ON workers (seen_at) WHERE state <> 'stopped';

    CREATE TABLE revisions (
        model text PRIMARY KEY,
        source text NOT NULL,
        revision text NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT now()
    );

    CREATE TABLE batch_sizes (
        worker_class text,
        model text,
        images integer NOT NULL,
        found_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT batch_sizes_images_check CHECK (images > 0),
        PRIMARY KEY (worker_class, model)
    );
"""


def upgrade() -> None:
    for statements in (ENUMS, ACCOUNTS, BATCHES, QUEUE, WORKERS):
        op.execute(statements)


def downgrade() -> None:
    op.execute("""
        DROP TABLE batch_sizes, revisions, workers, lane_samples, leases, images, jobs, lanes, datasets, skipped_lines,
            batches, uploads, audit, idempotency_keys, licence_acceptances, api_keys, tenants;
        DROP TYPE via, dataset_state, batch_state, worker_state, lease_outcome, image_state, job_state, tier;
    """)
