"""Files of prompts: the encoding of a CSV file, and the lines that a batch has skipped"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("uploads", sa.Column("encoding", sa.Text()))
    op.add_column("batches", sa.Column("skipped", sa.BigInteger(), server_default="0", nullable=False))
    op.create_table(
        "skips",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("line", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("skips_batch_id_fkey")),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("skips_pkey")),
    )


def downgrade() -> None:
    op.drop_table("skips")
    op.drop_column("batches", "skipped")
    op.drop_column("uploads", "encoding")
