"""A small farm for one outage at a time: an API, a control worker and a render worker, each behind proxies of its own.

An outage begins and ends with two functions; in between, every process meets it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults.farm import Child, Farm, Rhythm
from tests.faults.proxy import Network, Proxy

SERVERS = ("postgres", "valkey", "s3")
PROCESSES = ("api", "control", "render")


class SmallFarm(Farm):
    """With the product's own rhythm."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, Rhythm(lease_s=15, beat_s=5, sweep_s=3, drain_s=5))
        self.api_ports, self.urls = self.api_ports[:1], self.urls[:1]
        self.network = Network(
            {f"{process}-{server}": self.site.ports[server] for process in PROCESSES for server in SERVERS}
        )

    def processes(self) -> list[Child]:
        arguments = {
            "api": ["api", "--port", str(self.api_ports[0])],
            "control": ["worker", "control"],
            "render": ["worker", "render", "--device", "stub:0.02"],
        }
        return [Child(name, arguments[name], self.environment(self.proxies(name))) for name in PROCESSES]

    def proxies(self, process: str) -> dict[str, Proxy]:
        """Of one process, by server."""
        return {server: self.network[f"{process}-{server}"] for server in SERVERS}

    def server_ports(self, process: str) -> set[int]:
        return {proxy.port for proxy in self.proxies(process).values()}

    def own_ports(self, process: str) -> set[int]:
        """That users connect to."""
        return set(self.api_ports) if process == "api" else set()

    def before(self, server: str) -> list[Proxy]:
        """All proxies before one server."""
        return [self.network[f"{process}-{server}"] for process in PROCESSES]


class Outage(NamedTuple):
    begin: Callable[[SmallFarm], object]
    end: Callable[[SmallFarm], object]


def away(server: str) -> Outage:
    """Nobody listens on the port."""
    return before_all(server, Proxy.shut, Proxy.reopen)


def silent(server: str) -> Outage:
    """Connections are accepted; nothing that is sent is answered."""
    return before_all(server, lambda proxy: proxy.become(black_hole=True), Proxy.become)


def before_all(server: str, begin: Callable[[Proxy], object], end: Callable[[Proxy], object]) -> Outage:
    def do(what: Callable[[Proxy], object], farm: SmallFarm) -> None:
        for proxy in farm.before(server):
            what(proxy)

    return Outage(partial(do, begin), partial(do, end))


def fill_redis(farm: SmallFarm) -> None:
    """It refuses every command that takes memory, also those by which a consumer begins: all have to begin again."""
    limit_redis(farm, "1mb")
    for proxy in farm.before("valkey"):
        proxy.reset_all()


def limit_redis(farm: SmallFarm, memory: str) -> None:
    with farm.redis() as client:
        client.config_set("maxmemory", memory)


OUTAGES = {
    "redis_away": away("valkey"),
    "redis_full": Outage(fill_redis, lambda farm: limit_redis(farm, "0")),
    "redis_silent": silent("valkey"),
    "postgres_away": away("postgres"),
    "postgres_silent": silent("postgres"),
    "s3_away": away("s3"),
    "s3_silent": silent("s3"),
}
