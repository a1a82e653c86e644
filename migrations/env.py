"""Runs migrations on the connection that `common.db.migrate` hands over; each must give up its locks quickly."""

from alembic import context
from sqlalchemy import text

from common.tables import metadata

connection = context.config.attributes["connection"]
connection.execute(text("SET LOCAL lock_timeout = '5s'"))
connection.execute(text("SET LOCAL statement_timeout = 0"))
context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
with context.begin_transaction():
    context.run_migrations()
