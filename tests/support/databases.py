"""A migrated and empty database for each test: a copy of the template, or one that another test has left, cleared.

To clear is four times cheaper than to drop and to copy. A database gets a new name when its test has ended, so what the
test has left running reaches it no more; one whose tables are no longer the template's is dropped.
"""

from uuid import uuid4

import psycopg

from common.db import migrate
from embedded.instance import Instance

TEMPLATE = "template_of_tests"

# Ends all connections to a database, and waits for it.
DISCONNECT = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"

# What is not rows, as one hash: equal for all copies of the template.
SHAPE = """
    SELECT md5(concat_ws(';', (SELECT version_num FROM alembic_version),
        (SELECT concat_ws(' ', revision, oldest_code) FROM schema_version),
        (SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_'), (SELECT count(*) FROM pg_extension),
        (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_attrdef),
        (SELECT count(*) FROM pg_statistic WHERE starelid >= 16384),
        (SELECT string_agg(concat_ws(' ', oid, relname, relkind, reloptions), ',' ORDER BY oid)
            FROM pg_class WHERE oid >= 16384),
        (SELECT string_agg(concat_ws(' ', attrelid, attname, atttypid, attnotnull), ',' ORDER BY attrelid, attnum)
            FROM pg_attribute WHERE attrelid >= 16384),
        (SELECT string_agg(concat_ws(' ', oid, convalidated), ',' ORDER BY oid) FROM pg_constraint WHERE oid >= 16384),
        (SELECT string_agg(concat_ws(' ', oid, tgenabled), ',' ORDER BY oid) FROM pg_trigger),
        (SELECT concat_ws(' ', datallowconn, datconnlimit, setconfig) FROM pg_database
            LEFT JOIN pg_db_role_setting ON setdatabase = pg_database.oid WHERE datname = current_database())))
"""

# Deletes all rows but those of migrations. TRUNCATE costs milliseconds a table, and is for those that have grown.
CLEAR = """
    DO $$ DECLARE it record; BEGIN
        FOR it IN SELECT oid::regclass AS name, pg_relation_size(oid) AS size FROM pg_class
            WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
                AND relname NOT IN ('alembic_version', 'schema_version')
        LOOP
            IF it.size > 200000 THEN EXECUTE format('TRUNCATE %s CASCADE', it.name);
            ELSIF it.size > 0 THEN EXECUTE format('DELETE FROM %s', it.name); END IF;
        END LOOP;
        PERFORM setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S';
    END $$
"""


def make_template(instance: Instance) -> None:
    with connect(instance, "postgres") as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")
    migrate(instance.database_url(instance.host, TEMPLATE))


class Databases:
    """The databases of one test process."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._server = connect(instance, "postgres")
        self._cleared: list[str] = []
        self._shape: str | None = None

    def take(self) -> str:
        """The name of a database."""
        if self._cleared:
            return self._cleared.pop()
        name = new_name()
        self._server.execute(f'CREATE DATABASE "{name}" TEMPLATE {TEMPLATE} STRATEGY FILE_COPY'.encode())
        if self._shape is None:
            with connect(self._instance, name) as connection:
                self._shape = shape(connection)
        return name

    def give_back(self, name: str) -> None:
        renamed = new_name()
        try:
            self._server.execute(DISCONNECT, [name])
            self._server.execute(f'ALTER DATABASE "{name}" RENAME TO "{renamed}"'.encode())
            with connect(self._instance, renamed) as connection:
                if shape(connection) == self._shape:
                    connection.execute(CLEAR)
                    self._cleared.append(renamed)
                    return
        except psycopg.Error:
            pass  # its tables are gone, or somebody was faster than the renaming
        for one in (name, renamed):
            self._server.execute(f'DROP DATABASE IF EXISTS "{one}" WITH (FORCE)'.encode())

    def close(self) -> None:
        self._server.close()


def new_name() -> str:
    return f"test-{uuid4().hex}"


def connect(instance: Instance, name: str) -> psycopg.Connection:
    """As the superuser, past all foreign keys."""
    options = "-c session_replication_role=replica"
    return psycopg.connect(instance.database_url(instance.host, name), autocommit=True, options=options)


def shape(connection: psycopg.Connection) -> str:
    return str(connection.execute(SHAPE).fetchall()[0][0])
