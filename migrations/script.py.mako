"""${message}

The farm runs while this does: the old code before it, both during it, the new code after it.
- Add columns as NULL or with a constant default; add CHECKs and foreign keys NOT VALID, validate in a later migration.
- Make indexes on large tables CONCURRENTLY, in a migration of their own (`with op.get_context().autocommit_block():`).
- Rename or drop only what no accepted release reads: first stop reading, release, then drop.
- Fill old rows from a control worker in chunks, never in one UPDATE here.
- Add the new revision to ACCEPTED_REVISIONS in common/db.py; take the old one out one release later.
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
