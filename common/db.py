"""Postgres: the engine, one commit point, the migrations, and which code works with which tables.

Two releases live together on one database: it holds a `revision` and the `oldest_code` that works with it, this code
holds CODE and NEEDS. Knows no other table than that one.

Domain functions take an open connection and never commit. The caller of `transaction()` sends to Redis after it.
Alembic is imported only to migrate: it takes half as long as all other imports of the API.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import uuid_utils
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from common import sentence
from common.config import Settings
from common.errors import Invalid, NoRoom, Unavailable
from common.sentences import Sentence

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
# What this code understands. It is raised with each migration, and before anything is stored that the code before does
# not know.
CODE = 9
NEEDS = 17  # the least revision of the tables that this code works with
MAX_ID_MS = 2**48 - 1  # of the time in a UUIDv7: the year 10889
DISK_FULL = "53100"  # an SQLSTATE
IDLE_S = 1.0  # a connection that was used within this time is not pinged


def connect(
    settings: Settings,
    *,
    pool: int = 10,
    pool_timeout_s: float = 10,
    statement_timeout_s: float = 30,
    keeps_plans: bool = False,
) -> Engine:
    """An engine with at most `pool` connections, for one of which it waits `pool_timeout_s`. Opens none until used.

    `keeps_plans`: a statement that is executed again and again is planned once, whatever its parameters are.
    """
    plans = " -c plan_cache_mode=force_generic_plan" if keeps_plans else ""
    engine = create_engine(
        sqlalchemy_url(settings.database_url.get_secret_value()),
        pool_size=pool,
        max_overflow=0,
        pool_timeout=pool_timeout_s,
        hide_parameters=True,  # of a statement that fails: a traceback in a log has no prompt
        pool_recycle=1800 if pool > 1 else -1,  # a pool of one is reserved: a new connection may be refused
        connect_args={
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "application_name": "huafang",
            "options": f"-c statement_timeout={int(statement_timeout_s * 1000)} -c timezone=UTC"
            f" -c idle_in_transaction_session_timeout=30000 -c lock_timeout=10000{plans}",
        },
    )
    ping_idle_connections(engine)
    return engine


def ping_idle_connections(engine: Engine) -> None:
    """Ping a connection that was idle before its next use. `pool_pre_ping` pings each time: a third of a read."""

    @event.listens_for(engine, "checkin")
    def start_idling(connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", time.monotonic()) < IDLE_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("Postgres was down meanwhile.") from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by any exception.

    Raises Unavailable when Postgres is down, closes the connection, or requires another try (deadlock, time-out). A
    COMMIT may have succeeded all the same: read back before a second try. NoRoom when its disk is full.
    """
    with _as_unavailable(), engine.begin() as connection:
        yield connection


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == DISK_FULL:
            raise NoRoom(sentence("database_full")) from error
        raise Unavailable(sentence("database_down")) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(sentence("database_disconnected")) from error
        raise


def new_id() -> UUID:
    """A UUIDv7: unique, and ordered by the time it was made."""
    return UUID(bytes=uuid_utils.uuid7().bytes)


def id_of_time(seconds: float) -> UUID:
    """Less than any UUIDv7 made later; of the first or the last time that one can have, for a time outside of those."""
    return UUID(int=min(max(int(seconds * 1000), 0), MAX_ID_MS) << 80)


class SchemaVersion(NamedTuple):
    """The number of the newest migration (0: no tables), and the least CODE that works with the tables."""

    revision: int
    oldest_code: int


class Migrated(NamedTuple):
    """The newest migration of a database, and a note when newer code has made it: then nothing was done."""

    revision: str
    note: Sentence | None = None


def migrate(database_url: str) -> Migrated:
    """Migrate the database to the newest revision. Each migration is a transaction of its own, unless it opts out.

    A database that newer code has migrated stays as it is. Raises Unavailable when Postgres is down, and Invalid for a
    database that this code does not work with.
    """
    from alembic import command

    connect_args = {"connect_timeout": 5, "options": "-c lock_timeout=5000 -c statement_timeout=0"}
    engine = create_engine(sqlalchemy_url(database_url), connect_args=connect_args)
    try:
        with _as_unavailable(), engine.connect() as connection:
            version, current = read_version(connection), current_revision(connection)
            connection.rollback()
            if current is None or current in known_revisions():
                command.upgrade(migration_config(connection), "head")
                return Migrated(newest_revision())
    finally:
        engine.dispose()
    if version.revision <= int(newest_revision().removeprefix("r")):  # not by a newer release of this code
        raise Invalid(sentence("database_unknown", revision=current))
    if why := refusal(version):
        raise Invalid(why)
    return Migrated(current, sentence("database_newer"))


def read_version(connection: Connection) -> SchemaVersion:
    if connection.execute(text("SELECT to_regclass('schema_version')")).scalar() is None:
        return SchemaVersion(0 if current_revision(connection) is None else 1, 0)
    # Read which code works with the tables.
    return SchemaVersion(*connection.execute(text("SELECT revision, oldest_code FROM schema_version")).one())


def check_version(version: SchemaVersion) -> None:
    """Raises Unavailable unless this code works with the tables."""
    if why := refusal(version):
        raise Unavailable(why)


def refusal(version: SchemaVersion) -> Sentence | None:
    """Why this code does not work with the tables; None if it does."""
    if version.revision == 0:
        return sentence("database_empty")
    if version.revision < NEEDS:
        return sentence("database_old", revision=version.revision, needs=NEEDS)
    if version.oldest_code > CODE:
        return sentence("database_new", needs=version.oldest_code, code=CODE)
    return None


def current_revision(connection: Connection) -> str | None:
    """The id of the newest migration; None if the database was never migrated."""
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
    """The URL for the psycopg 3 driver of one that starts with `postgresql://` or `postgres://`."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else url
