"""Pictures among the uploads: their size, and when an upload was last asked for"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("width", sa.Integer()))
    op.add_column("uploads", sa.Column("height", sa.Integer()))
    used_at = sa.Column("used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    op.add_column("uploads", used_at)
    op.create_index("uploads_used_at_idx", "uploads", ["used_at"])
    op.create_index("batches_upload_id_idx", "batches", ["upload_id"])


def downgrade() -> None:
    op.drop_index("batches_upload_id_idx", "batches")
    op.drop_index("uploads_used_at_idx", "uploads")
    for column in ("used_at", "height", "width"):
        op.drop_column("uploads", column)
