"""Workers are quarantined by their names, and images know who failed them"""

from alembic import op

revision = "r0006"
down_revision = "r0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            CREATE TABLE IF NOT EXISTS quarantines (
                name text PRIMARY KEY,
                quarantined_at timestamptz NOT NULL DEFAULT now(),
                code text NOT NULL,
                reason text NOT NULL,
                model text,
                known_picture text,
                trials smallint NOT NULL DEFAULT 0,
                retry_at timestamptz NOT NULL
            )
        """)
        op.execute("""
            CREATE TABLE IF NOT EXISTS trial_pictures (
                digest text PRIMARY KEY,
                model text NOT NULL,
                recorded_by text NOT NULL,
                recorded_at timestamptz NOT NULL DEFAULT now(),
                thumbnail bytea NOT NULL
            )
        """)
        op.execute("ALTER TABLE images ADD COLUMN IF NOT EXISTS failed_by text[]")
        op.execute("ALTER TABLE workers ADD COLUMN IF NOT EXISTS cannot_store_since timestamptz")


def downgrade() -> None:
    op.execute("ALTER TABLE workers DROP COLUMN cannot_store_since")
    op.execute("ALTER TABLE images DROP COLUMN failed_by")
    op.execute("DROP TABLE trial_pictures, quarantines")
