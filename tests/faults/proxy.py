"""A bad network: a TCP proxy before one server, whose weather can be changed at any moment from any thread.

Counts whom its weather touched, so that a fault that met nobody is not taken for one that was survived. Knows two
words of the protocols it carries: the answer of Postgres to a COMMIT, and the first line of an HTTP request.
"""

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"  # CommandComplete of Postgres
VERBS = (b"PUT ", b"GET ", b"HEAD ", b"POST ", b"DELETE ")
ERROR_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Weather:
    """What happens to the connections of a proxy. Nothing, to begin with."""

    delay_s: float = 0.0  # of every chunk
    black_hole: bool = False  # nothing passes; what was sent arrives when it heals, as TCP does it
    refuse: bool = False
    cut_up: int | None = None  # a connection that has sent so many bytes is reset
    cut_down: int | None = None  # a connection that has received so many bytes is reset
    cut_commits: int = 0  # so many answers to COMMIT are lost, with their connections
    errors: bool = False  # HTTP: every request is answered with 500


class Connection:
    """One connection through the proxy: its two ends, and how much passed under the present weather."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, weather: Weather) -> None:
        self.ends = (client, server)
        self.sent: Counter[str] = Counter()
        self.weather = weather

    def count(self, direction: str, size: int, weather: Weather) -> int:
        """How much has passed in this direction since the weather changed."""
        if weather is not self.weather:
            self.weather = weather
            self.sent.clear()
        self.sent[direction] += size
        return self.sent[direction]

    def reset(self) -> None:
        for end in self.ends:
            reset(end)


class Proxy:
    """Listens on `port` once `start` has returned."""

    def __init__(self, name: str, upstream: int) -> None:
        self.name = name
        self.weather = Weather()
        self.touched: Counter[str] = Counter()
        self.port = 0
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def open(self) -> int:
        return len(self._connections)

    def become(self, **weather: object) -> None:
        """Change the weather; what is not named is fine again."""
        self.weather = Weather(**weather)  # type: ignore[arg-type]

    def reset_all(self) -> int:
        """Reset every connection there is; how many."""
        count = len(self._connections)
        self.touched["reset"] += count
        if self._loop:
            self._loop.call_soon_threadsafe(self._reset_connections)
        return count

    def _reset_connections(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._listen(bound_socket(0))

    def shut(self) -> None:
        """Be a server that is not there: the port refuses, and what was connected is reset."""
        self._do(self._shut())

    def reopen(self) -> None:
        self._do(self._listen(self._placeholder))

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        assert self._loop, "the proxy has not started"
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self, on: socket.socket) -> None:
        self.port = on.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=on)

    async def _shut(self) -> None:
        assert self._server
        self._server.close()
        self._placeholder = bound_socket(self.port)  # nobody else shall get the port meanwhile
        self._reset_connections()

    async def _serve(self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            if self.weather.refuse:
                raise ConnectionRefusedError
            from_server, server = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            self.touched["refused"] += 1
            return reset(client)
        connection = Connection(client, server, self.weather)
        self._connections.add(connection)
        pumps = [
            asyncio.create_task(self._pump("up", from_client, server, connection)),
            asyncio.create_task(self._pump("down", from_server, client, connection)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.discard(connection)
            for pump in pumps:
                pump.cancel()
            client.close()
            server.close()

    async def _pump(
        self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, connection: Connection
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                if not await self._passes(direction, data, connection):
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            return

    async def _passes(self, direction: str, data: bytes, connection: Connection) -> bool:
        """Whether these bytes come through, when the weather lets them."""
        if self.weather.delay_s:
            self.touched["delayed"] += 1
            await asyncio.sleep(self.weather.delay_s)
        if self.weather.black_hole:
            self.touched["swallowed"] += 1
            while self.weather.black_hole:
                await asyncio.sleep(0.05)
        weather, (client, server) = self.weather, connection.ends
        if direction == "up" and weather.errors and data.startswith(VERBS):
            self.touched["answered_500"] += 1
            client.write(ERROR_500)
            await client.drain()
            await asyncio.sleep(0.2)  # let it be read before the connection goes
            return False
        if direction == "down" and weather.cut_commits and COMMITTED in data:
            weather.cut_commits -= 1
            self.touched["commits_cut"] += 1
            connection.reset()
            return False
        limit = weather.cut_up if direction == "up" else weather.cut_down
        passed = connection.count(direction, len(data), weather)
        if limit is not None and passed > limit:
            self.touched[f"cut_{direction}"] += 1
            (server if direction == "up" else client).write(data[: max(0, limit - passed + len(data))])
            await asyncio.sleep(0.02)
            connection.reset()
            return False
        return True


def bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def reset(end: asyncio.StreamWriter) -> None:
    """Close with RST, as a machine does that has forgotten the connection."""
    raw = end.get_extra_info("socket")
    if raw is not None:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


class Network:
    """The proxies of a farm, in one thread."""

    def __init__(self, upstreams: dict[str, int]) -> None:
        self.proxies = {name: Proxy(name, port) for name, port in upstreams.items()}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __getitem__(self, name: str) -> Proxy:
        return self.proxies[name]

    def start(self) -> None:
        self._thread.start()
        for proxy in self.proxies.values():
            asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)

    def heal(self) -> None:
        for proxy in self.proxies.values():
            proxy.become()
