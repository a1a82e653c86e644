"""`python -m api`: serve the API until a signal ends it."""

import argparse
import ctypes
import socket
import threading
from concurrent.futures import Future

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.protocol import Protocol
from common import log
from common.accounts.farm import Farm
from common.config import Settings
from common.errors import Error, Unavailable, WrongFarm

STOP_S = 20  # for requests in flight
COMPARE_S = 3  # the start waits so long for the answer whether the services are of one farm
# Between two requests on a connection. Clients keep it for less (5 s is usual), as do proxies (60 s): a server that
# closes it may lose a request that is on its way.
KEEP_ALIVE_S = 75
M_ARENA_MAX, ARENAS = -8, 2  # of glibc's mallopt
HEADERS = [("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY")]  # of every answer


class Server(uvicorn.Server):
    """Ends waits and streams before it waits for open requests."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port, *_ = self.servers[0].sockets[0].getsockname()
            policy = self.config.app.state.shared.policy.version or None  # type: ignore[union-attr]
            log.log_event("api_started", host=host, port=port, policy=policy)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        state.dashboard.state.page_streams.close()
        await state.shared.job_watcher.close()
        await super().shutdown(sockets)


def make_server(app: FastAPI, settings: Settings, host: str, port: int) -> Server:
    """Port 0: any that is free."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        log_config=None,
        log_level="warning",
        access_log=False,
        headers=HEADERS,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=True,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_graceful_shutdown=STOP_S,
    )
    return Server(config)


def share_memory() -> None:
    """Let glibc's threads share two heaps: each of 40 would keep what its largest request needed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt:
        mallopt(M_ARENA_MAX, ARENAS)


def refuse_another_farm(farm: Farm) -> None:
    """Raises WrongFarm. Of services that do not answer soon `/readyz` says later whether they are the right ones."""
    comparing = Future[None]()

    def compare() -> None:
        try:
            farm.compare()
        except Exception as error:
            comparing.set_exception(error)
        else:
            comparing.set_result(None)

    threading.Thread(target=compare, name="compare", daemon=True).start()
    try:
        comparing.result(COMPARE_S)
    except WrongFarm:
        raise
    except (Unavailable, TimeoutError):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    settings = Settings()
    log.set_up(settings.log_level)
    share_memory()
    try:
        app = create_app(settings)
        refuse_another_farm(app.state.shared.farm)
    except Error as error:
        raise SystemExit(error.message) from None
    make_server(app, settings, arguments.host, arguments.port).run()


if __name__ == "__main__":
    main()
