"""Runs migrations on the connection that `common.db.migrate` hands over, each in a transaction of its own.

After each of them `schema_version` holds its number: no migration can forget it.
"""

from collections.abc import Collection

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from common.schema import metadata

# Record the number of the newest migration.
SET_REVISION = text("UPDATE schema_version SET revision = :revision")


def record_revision(ctx: MigrationContext, step: object, heads: Collection[str], run_args: object) -> None:
    number = max((int(head.removeprefix("r")) for head in heads), default=0)
    if number >= 2:  # the first migration with the table
        assert ctx.connection
        ctx.connection.execute(SET_REVISION, {"revision": number})


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_server_default=True,
    transaction_per_migration=True,
    on_version_apply=record_revision,
)
with context.begin_transaction():
    context.run_migrations()
