"""Time that passes at once: every moment in the tables moves back, and so do the ids of leases, which are times too."""

from sqlalchemy import Column, Connection, DateTime, Engine, text

from common.schema import metadata

DAY_S = 86400


def age(database: Engine, days: float) -> None:
    with database.begin() as connection:
        for table in metadata.sorted_tables:
            for column in table.columns:
                if isinstance(column.type, DateTime):
                    _move(connection, column, days * DAY_S)
        for name, lease_id in (("leases", "id"), ("images", "lease_id")):
            statement = text(f"UPDATE {name} SET {lease_id} = {EARLIER.format(id=lease_id)}")
            connection.execute(statement, {"ms": days * DAY_S * 1000})


def _move(connection: Connection, column: Column, seconds: float) -> None:
    """In two steps: what is unique, as the minute of a sample, must not meet the row of the day before."""
    far = 1e10
    for by in (seconds + far, -far) if column.primary_key else (seconds,):
        statement = text(
            f'UPDATE {column.table.name} SET "{column.name}" = "{column.name}" - make_interval(secs => :by)'
        )
        connection.execute(statement, {"by": by})


# A UUIDv7 of so many milliseconds before.
EARLIER = """
    cast(lpad(to_hex(('x' || substr(replace({id}::text, '-', ''), 1, 12))::bit(48)::bigint - cast(:ms AS bigint)),
              12, '0') || substr(replace({id}::text, '-', ''), 13) AS uuid)
"""
