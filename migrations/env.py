"""Runs migrations on the connection that `common.db.migrate` hands over, each in a transaction of its own."""

from alembic import context

from common.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, compare_server_default=True, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
