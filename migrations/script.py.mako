"""${message}

The farm runs while this does, and the old code goes on with the new tables: two releases live together, either way.
- Its id is `r` and the next number; `schema_version.revision` follows it. Raise NEEDS in common/db.py to it when this
  code reads what it adds, and CODE in any case.
- Only expand: new tables, and columns that are NULL or have a constant default. Rename nothing, narrow nothing, and add
  no value to an enum: the old code can neither read it nor write it.
- Give a column a name that no other table has, unless old code never joins the two: its statements may name a column of
  that name without the table.
- Contract two releases later: release code that does not use it, then drop it, in a migration that also says
  `UPDATE schema_version SET oldest_code = ` the first CODE that does not use it.
- Lock one table at a time, or a request of the running farm can deadlock with this: each ALTER of a table with rows in
  `with op.get_context().autocommit_block():`, with IF NOT EXISTS, so that a second run is harmless.
- CHECKs and foreign keys NOT VALID, validated in a later migration; indexes on large tables CONCURRENTLY.
- Fill old rows from a control worker in chunks, never in one UPDATE here.
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
