"""Signing out ends a session for good"""

from alembic import op

revision = "r0016"
down_revision = "r0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS ended_sessions (
                key_id uuid REFERENCES api_keys(id),
                signed_in_at timestamptz,
                PRIMARY KEY (key_id, signed_in_at)
            )
        """)


def downgrade() -> None:
    op.execute("DROP TABLE ended_sessions")
