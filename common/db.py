"""The way to Postgres: the engine, one commit point, and the migrations. Knows no table.

Domain functions take an open connection and never commit. Whoever opens `transaction()` sends to Redis after it.
Alembic is imported by those who migrate: it takes as long as half of all else that the API imports.
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
from common.errors import Invalid, Unavailable

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
# Revisions whose tables this code works with, so that a rolling upgrade can migrate before the last old process stops.
ACCEPTED_REVISIONS = ("r0001",)
REST_S = 1.0  # a connection that was used lately is still good


def connect(settings: Settings, *, pool: int = 10, statement_timeout_s: float = 30) -> Engine:
    """An engine with at most `pool` connections. Opens none until it is used."""
    engine = create_engine(
        sqlalchemy_url(settings.database_url.get_secret_value()),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=1800 if pool > 1 else -1,  # one alone is reserved: there may be no other to be had
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
    ping_after_a_rest(engine)
    return engine


def ping_after_a_rest(engine: Engine) -> None:
    """Try a connection that has rested before it is used, as `pool_pre_ping` tries each: that is a third of a read."""

    @event.listens_for(engine, "checkin")
    def rests(connection: Any, record: Any) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def wakes(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) < REST_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("Postgres was away meanwhile.") from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises Unavailable when Postgres is away, cuts the connection, or asks for another try (deadlock, time-out). After
    that it is not known whether a COMMIT went through: read back before doing it again.
    """
    with _in_our_words(), engine.begin() as connection:
        yield connection


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise Unavailable("The database is away or too busy; try again shortly.") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("The database cut the connection; try again shortly.") from error
        raise


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by the time it was made."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def id_of_time(seconds: float) -> UUID:
    """Less than any UUIDv7 made later."""
    return UUID(int=int(seconds * 1000) << 80)


def migrate(database_url: str) -> None:
    """Bring the database to the newest revision: each on the way is a transaction, and some are none.

    Raises Unavailable when Postgres is away, and Invalid for a database that this version does not know.
    """
    from alembic import command

    impatient = {"connect_timeout": 5, "options": "-c lock_timeout=5000 -c statement_timeout=0"}
    engine = create_engine(sqlalchemy_url(database_url), connect_args=impatient)
    try:
        with _in_our_words(), engine.connect() as connection:
            current = current_revision(connection)
            connection.rollback()
            if current is not None and current not in known_revisions():
                raise Invalid(unknown_revision(current))
            command.upgrade(migration_config(connection), "head")
    finally:
        engine.dispose()


def check_revision(revision: str | None) -> None:
    """Raises Unavailable unless this code works with the tables of a database at this revision."""
    if revision in ACCEPTED_REVISIONS:
        return
    if revision is None:
        raise Unavailable("The database has no tables yet: run `huafang admin migrate`.")
    if revision in known_revisions():
        raise Unavailable(f"The database is at revision {revision}, an old one: run `huafang admin migrate`.")
    raise Unavailable(unknown_revision(revision))


def unknown_revision(revision: str) -> str:
    return (
        f"The database is at revision {revision}, which this version does not know: run the version that made it, or "
        "make a new database (for a local farm: stop it and delete its folder)."
    )


def current_revision(connection: Connection) -> str | None:
    """None where nothing was ever migrated."""
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
    """`postgresql://…`, as every other tool writes it, for the psycopg 3 driver."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url
