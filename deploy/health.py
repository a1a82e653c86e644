"""`python health.py api | worker | control`: is this container doing its work? Exit code 0 if so. For healthchecks.

A worker says so by its beat; a control worker by its effect: no lease is long overdue while it sweeps.
"""

import socket
import sys
import urllib.request

from sqlalchemy import text

from common.config import Settings
from common.db import connect, transaction

API = "http://127.0.0.1:8000/healthz"

BEATS = text(
    "SELECT EXISTS (SELECT FROM workers WHERE starts_with(name, :name) AND state <> 'stopped'"
    " AND seen_at > now() - make_interval(secs => :seconds))"
)
SWEPT = text(
    "SELECT NOT EXISTS (SELECT FROM leases WHERE ended_at IS NULL AND expires_at < now() - make_interval(secs => 60))"
)


def is_well(process: str, settings: Settings) -> bool:
    if process == "api":
        return bool(urllib.request.urlopen(API, timeout=5).status == 200)
    engine = connect(settings, pool=1, statement_timeout_s=5)
    try:
        with transaction(engine) as connection:
            if process == "control":
                return bool(connection.execute(SWEPT).scalar_one())
            named = {"name": settings.worker_name or socket.gethostname(), "seconds": 6 * settings.beat_s}
            return bool(connection.execute(BEATS, named).scalar_one())
    finally:
        engine.dispose()


if __name__ == "__main__":
    try:
        sys.exit(0 if is_well(sys.argv[1], Settings()) else 1)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
