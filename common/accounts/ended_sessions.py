"""Sessions of the dashboard that have been signed out of, for as long as their cookies would be valid. Knows no cookie.

A session is a key and when it was exchanged for a cookie, to the second: two that began in the same second are one.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text


def end(connection: Connection, key_id: UUID, signed_in_at: datetime, lifetime_s: float) -> None:
    """End a session. Forgets those that began longer ago than a session lasts."""
    session = {"key": key_id, "at": signed_in_at}
    connection.execute(FORGET, {"lifetime": lifetime_s})
    connection.execute(END, session)


def has_ended(connection: Connection, key_id: UUID, signed_in_at: datetime) -> bool:
    """Whether it was signed out of."""
    return bool(connection.execute(HAS_ENDED, {"key": key_id, "at": signed_in_at}).scalar_one())


# Ends a session.
END = text("INSERT INTO ended_sessions (key_id, signed_in_at) VALUES (:key, :at) ON CONFLICT DO NOTHING")

# Forgets sessions whose cookies are not valid any more, by whatever clock: a day later.
FORGET = text("DELETE FROM ended_sessions WHERE signed_in_at < now() - make_interval(secs => 86400 + :lifetime)")

# Finds out whether a session has ended.
HAS_ENDED = text("SELECT EXISTS (SELECT FROM ended_sessions WHERE key_id = :key AND signed_in_at = :at)")
