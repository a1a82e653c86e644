"""The matrix of a batch: how many jobs each of its prompts becomes"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("batches", sa.Column("variants", sa.Integer(), server_default="1", nullable=False))
    op.drop_constraint("batches_expanded_check", "batches")
    op.create_check_constraint(
        op.f("batches_expanded_check"),
        "batches",
        "expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts * variants)",
        postgresql_not_valid=True,
    )


def downgrade() -> None:
    op.drop_constraint("batches_expanded_check", "batches")
    op.create_check_constraint(
        op.f("batches_expanded_check"),
        "batches",
        "expanded_at IS NULL OR (checked_at IS NOT NULL AND jobs = prompts)",
        postgresql_not_valid=True,
    )
    op.drop_column("batches", "variants")
