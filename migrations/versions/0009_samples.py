"""Samples of what the lanes have counted, for the charts of the dashboard

The first one is taken here, or all that was ever counted would show as one minute's work.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "samples",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tier", postgresql.ENUM(name="tier", create_type=False), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("stored", "flagged", "failed", "cancelled")),
        sa.PrimaryKeyConstraint("minute", "model", "tier", name=op.f("samples_pkey")),
    )
    op.execute("""
        INSERT INTO samples
        SELECT date_trunc('minute', now()), model, tier, sum(stored), sum(flagged), sum(failed), sum(cancelled)
        FROM lanes GROUP BY model, tier
    """)


def downgrade() -> None:
    op.drop_table("samples")
