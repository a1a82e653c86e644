"""Images know what decided their picture, so that a later one can have the same object"""

from alembic import op

revision = "r0018"
down_revision = "r0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("""
            ALTER TABLE images ADD COLUMN IF NOT EXISTS picture_key bytea,
                ADD COLUMN IF NOT EXISTS reuse_key uuid,
                ADD COLUMN IF NOT EXISTS reused boolean NOT NULL DEFAULT false
        """)
        op.execute("ALTER TABLE workers ADD COLUMN IF NOT EXISTS picture_classes jsonb NOT NULL DEFAULT '{}'")
        op.execute("""
            CREATE INDEX CONCURRENTLY IF NOT EXISTS images_reuse_key_idx ON images (reuse_key)
            WHERE reuse_key IS NOT NULL AND state = 'stored' AND picture_deleted_at IS NULL AND error_code IS NULL
        """)
        op.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS images_reused_idx ON images (key) WHERE reused")


def downgrade() -> None:
    op.execute("DROP INDEX images_reused_idx")
    op.execute("DROP INDEX images_reuse_key_idx")
    op.execute("ALTER TABLE workers DROP COLUMN picture_classes")
    op.execute("ALTER TABLE images DROP COLUMN reused, DROP COLUMN reuse_key, DROP COLUMN picture_key")
