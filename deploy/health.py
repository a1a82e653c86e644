"""`python health.py api | worker | control`: the healthcheck of a container. Exit code 0 where it is healthy.

A worker is healthy while it sends heartbeats, a control worker while no lease is long expired: its sweep ends those.
"""

import socket
import sys
import urllib.request

from sqlalchemy import text

from common.config import Settings
from common.db import connect, transaction

API = "http://127.0.0.1:8000/healthz"

# Whether the worker of this name has sent a heartbeat lately.
HAS_HEARTBEAT = text(
    "SELECT EXISTS (SELECT FROM workers WHERE starts_with(name, :name) AND state <> 'stopped'"
    " AND seen_at > now() - make_interval(secs => :seconds))"
)
# Whether no open lease has been expired for a minute.
IS_SWEPT = text(
    "SELECT NOT EXISTS (SELECT FROM leases WHERE ended_at IS NULL AND expires_at < now() - make_interval(secs => 60))"
)


def is_healthy(process: str, settings: Settings) -> bool:
    if process == "api":
        return bool(urllib.request.urlopen(API, timeout=5).status == 200)
    engine = connect(settings, pool=1, statement_timeout_s=5)
    try:
        with transaction(engine) as connection:
            if process == "control":
                return bool(connection.execute(IS_SWEPT).scalar_one())
            worker = {"name": settings.worker_name or socket.gethostname(), "seconds": 6 * settings.beat_s}
            return bool(connection.execute(HAS_HEARTBEAT, worker).scalar_one())
    finally:
        engine.dispose()


if __name__ == "__main__":
    try:
        sys.exit(0 if is_healthy(sys.argv[1], Settings()) else 1)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
