"""Indexes for what the dashboard looks for: states, words in prompts, what became of a lane's images

Made beside a running farm, one after the other. What is left of one that broke off is dropped first.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INDEXES = {
    "jobs_state_idx": "jobs (tenant_id, state, id) WHERE state <> 'queued'",
    "jobs_prompt_idx": "jobs USING gin (string_to_array(lower(recipe ->> 'prompt'), NULL))",
    "images_ended_idx": "images (lane_id, state, finished_at, id) WHERE state IN ('stored', 'flagged', 'failed')",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")  # it waits for transactions that are under way, and holds up nobody
        for name, what in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {what}")
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
