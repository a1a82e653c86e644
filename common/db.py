"""Postgres: the engine, transactions, ids, and the migrations. Knows no table.

Domain functions take an open connection and never commit; the caller of `transaction` sends to Redis after it. Alembic
is imported late, by what migrates: it would add half to the import time of the API.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import uuid_utils
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from common.config import Settings
from common.errors import Invalid, Unavailable, sentence

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
# Revisions whose tables this code works with: more than one while a rolling upgrade replaces the processes.
ACCEPTED_REVISIONS = ("r0001",)
REST_S = 1.0  # unused for longer, a connection is tested before its use


def connect(settings: Settings, *, pool: int = 10, statement_timeout_s: float = 30) -> Engine:
    """An engine with at most `pool` connections. Opens none until it is used."""
    engine = create_engine(
        sqlalchemy_url(settings.database_url.get_secret_value()),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=1800 if pool > 1 else -1,  # a single connection is kept: Postgres may refuse another
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "application_name": "huafang",
            "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c timezone=UTC"
            " -c idle_in_transaction_session_timeout=30000 -c lock_timeout=10000",
        },
    )
    check_idle_connections(engine)
    return engine


def check_idle_connections(engine: Engine) -> None:
    """Ping idle connections before their use. `pool_pre_ping` pings all: a third of the cost of a read."""

    @event.listens_for(engine, "checkin")
    def note_idle(connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping_idle(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) < REST_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("The connection was cut while it was idle.") from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises Unavailable when Postgres is away, cuts the connection, or cannot go on (deadlock, time-out). The COMMIT may
    have succeeded then: read back before a further attempt.
    """
    with _unavailable_errors(), engine.begin() as connection:
        yield connection


@contextmanager
def _unavailable_errors() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise Unavailable(sentence("database_away")) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(sentence("database_cut")) from error
        raise


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by time."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def id_of_time(seconds: float) -> UUID:
    """The smallest UUIDv7 of a time, in seconds since 1970."""
    return UUID(int=int(seconds * 1000) << 80)


def migrate(database_url: str) -> None:
    """Migrate the database to the newest revision. Each migration is a transaction, unless it says otherwise.

    Raises Unavailable when Postgres is away, Invalid when this version does not know the revision of the database.
    """
    from alembic import command

    options = {"connect_timeout": 5, "options": "-c lock_timeout=5000 -c statement_timeout=0"}
    engine = create_engine(sqlalchemy_url(database_url), connect_args=options)
    try:
        with _unavailable_errors(), engine.connect() as connection:
            current = current_revision(connection)
            connection.rollback()
            if current is not None and current not in known_revisions():
                raise Invalid(sentence("revision_unknown", revision=current))
            command.upgrade(migration_config(connection), "head")
    finally:
        engine.dispose()


def check_revision(revision: str | None) -> None:
    """Raises Unavailable unless this code works with the tables of a database at this revision."""
    if revision in ACCEPTED_REVISIONS:
        return
    if revision is None:
        raise Unavailable(sentence("database_empty"))
    if revision in known_revisions():
        raise Unavailable(sentence("revision_old", revision=revision))
    raise Unavailable(sentence("revision_unknown", revision=revision))


def current_revision(connection: Connection) -> str | None:
    """None: the database has no tables."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None:
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def newest_revision() -> str:
    return known_revisions()[0]


def known_revisions() -> list[str]:
    """Newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def migration_config(connection: Connection | None = None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def sqlalchemy_url(url: str) -> str:
    """A `postgresql://` URL for the psycopg 3 driver."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url
