"""The databases of the tests: no test finds what another has left."""

from uuid import uuid4

from embedded.instance import Instance
from tests.support.databases import Databases, connect


def test_a_database_is_handed_out_again_without_rows_and_only_if_its_tables_are_as_before(
    databases: Databases, servers: Instance
) -> None:
    def ask(statement: str) -> object:
        with connect(servers, name) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchone() if cursor.description else None

    name = databases.take()
    ask(f"INSERT INTO tenants (id, name) VALUES ('{uuid4()}', 'somebody')")
    databases.give_back(name)
    first, name = name, databases.take()
    assert name != first  # what the first test has left running does not reach it
    assert ask("SELECT count(*) FROM tenants") == (0,)
    assert ask("SELECT count(*) FROM schema_version") == (1,)
    ask("ALTER TABLE tenants ADD COLUMN mine int")
    databases.give_back(name)
    name = databases.take()
    assert ask("SELECT count(*) FROM information_schema.columns WHERE column_name = 'mine'") == (0,)
    databases.give_back(name)
