"""1,000 event streams from one API, half of them to clients that never read. `one job`: all follow the same job, which
publishes 8 images each 0.6 s, with progress ten times a second in between. `a job each`: 8 jobs at a time start, make
progress and end. Measured are the time from the COMMIT until a reader receives an image; the growth of the API's memory
for each reader, unread data included; and the time of another request meanwhile (`GET /v1/jobs/ID`, one after the
other; `no reader` is those requests alone). Socket buffers are small, so that unread data stays in the API. Readers,
renderer and the client of the other requests share a process and a core.
"""

import asyncio
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from statistics import quantiles
from typing import cast
from uuid import UUID

import psutil
import uvloop
from sqlalchemy import Engine

from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.accounts import tenants
from common.broker import Broker
from common.catalog import catalog
from common.config import SHIPPED_CATALOG
from common.db import connect, new_id, transaction
from common.enums import ImageState
from common.queue import claim as claims
from common.queue import jobs, leases
from common.queue.claim import Offer
from common.queue.leases import Outcome
from common.recipes.recipe import Draft, resolve
from common.storage import image_key, sha256

MODEL = "mini-zh"
MICROBATCH = 8
STEPS, STEP_S = 6, 0.1  # of progress that is reported of each microbatch
OTHERS_S = 0.02  # between two other requests
RECEIVE_BUFFER = 4096  # bytes, of a client that does not read
IMAGE_EVENT = re.compile(rb'event: image\ndata: {"id":"([0-9a-f-]{36})"')
GOALS = (
    Goal("one job", measure="image received after, p99 ms"),
    Goal("a job each", measure="image received after, p99 ms"),
    Goal("one job", measure="memory a reader, KB"),
    Goal("one job", "no reader", "another request, p99 ms"),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    readers, microbatches = (200, 4) if options.quick else (1000, 24)
    with farm() as the_farm:
        yield {
            "no reader": lambda: run(the_farm, 0, microbatches, many=False),
            "one job": lambda: run(the_farm, readers, microbatches, many=False),
            "a job each": lambda: run(the_farm, readers, microbatches, many=True),
        }


def run(the_farm: Farm, readers: int, microbatches: int, many: bool) -> Figures:
    """Run in a new database, where no earlier run has left images that would be rendered first."""
    settings = the_farm.new_database(f"fanout-{secrets.token_hex(3)}")
    database = connect(settings, pool=2)
    try:
        with the_farm.api(settings, "bench.harness.narrow") as url:
            return uvloop.run(Fanout(the_farm, database, url).figures(readers, microbatches, many))
    finally:
        database.dispose()


class Fanout:
    """One run: an API, its readers, and the renderer of the jobs that they follow."""

    def __init__(self, the_farm: Farm, database: Engine, url: str) -> None:
        self.host, _, port = url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.database = database
        self.messages = Broker(the_farm.settings)
        self.headers = f"Host: {self.host}\r\nAuthorization: Bearer {the_farm.key(database)}\r\n\r\n"
        self.published: dict[bytes, float] = {}  # image → when
        self.delays: list[float] = []  # seconds after that
        self.others: list[float] = []
        self.memory = 0  # the maximum of the API

    async def figures(self, readers: int, microbatches: int, many: bool) -> Figures:
        images = microbatches * MICROBATCH
        followed = [self.submit(1) for _ in range(readers)] if many else [self.submit(images)] * max(readers, 1)
        asking = asyncio.create_task(self.ask(followed[0]))
        await asyncio.sleep(1)
        before = self.measure_memory()
        live = [await self.follow(job) for job in followed[: 2 * readers : 2]] if readers else []
        silent = [await self.stall(job) for job in followed[1::2]]
        await asyncio.wait_for(asyncio.gather(*(reader.began for reader in live)), 60)
        self.others.clear()
        for _ in range(microbatches):
            await asyncio.to_thread(self.render)
            self.measure_memory()
        expected = [reader for place, reader in enumerate(live) if not many or 2 * place < images]
        await asyncio.wait_for(asyncio.gather(*(reader.ended for reader in expected)), 60)
        grown = self.measure_memory() - before
        async with asyncio.timeout(60):
            while len(self.others) < 20 and not asking.done():
                await asyncio.sleep(OTHERS_S)
        if not asking.cancel():
            asking.result()
        for reader in live:
            reader.transport.close()
        for one in silent:
            one.close()
        others = {"another request, p99 ms": 1000 * quantiles(self.others, n=100)[98]}
        if not readers:
            return others
        cuts = quantiles(self.delays, n=100)
        return {
            "image received after, median ms": 1000 * cuts[49],
            "image received after, p99 ms": 1000 * cuts[98],
            "memory a reader, KB": grown / readers / 1024,
            **others,
        }

    # The renderer

    def submit(self, images: int) -> UUID:
        recipe = resolve(
            Draft.model_validate({"prompt": "红色的圆形"}), catalog.read(SHIPPED_CATALOG), MODEL, root_seed=0
        )
        with transaction(self.database) as connection:
            tenant = tenants.ensure_tenant(connection, "bench")
            return jobs.submit(connection, tenant, recipe.model_copy(update={"seeds": tuple(range(images))})).id

    def render(self) -> None:
        """Render a microbatch and report it as a worker does."""
        offer, lease_id = Offer(new_id(), {MODEL: MICROBATCH}), new_id()
        with transaction(self.database) as connection:
            microbatch = claims.claim(connection, offer, lease_id, 60)
        assert microbatch
        with transaction(self.database) as connection:
            leases.start(connection, microbatch)
        job_ids = {image.job_id for image in microbatch.images}
        self.messages.announce_changed(job_ids)
        for step in range(STEPS):
            time.sleep(STEP_S)
            self.messages.report_progress(job_ids, step + 1, STEPS)
        outcomes = [
            Outcome(image.id, ImageState.STORED, image_key(image.job_id, image.index, lease_id, "png"), sha256(b""), 1)
            for image in microbatch.images
        ]
        with transaction(self.database) as connection:
            leases.publish(connection, lease_id, outcomes)
        now = time.perf_counter()
        self.published |= {str(image.id).encode(): now for image in microbatch.images}
        self.messages.announce_changed(job_ids)

    # The readers

    async def follow(self, job_id: UUID) -> "Reader":
        loop = asyncio.get_running_loop()
        request = self.request(f"/v1/jobs/{job_id}/events")
        _, reader = await loop.create_connection(lambda: Reader(self, request), self.host, self.port)
        return reader

    async def stall(self, job_id: UUID) -> socket.socket:
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        silent.connect((self.host, self.port))
        silent.sendall(self.request(f"/v1/jobs/{job_id}/events"))
        return silent

    def receive(self, image: bytes, now: float) -> None:
        self.delays.append(now - self.published[image])

    # Other requests

    async def ask(self, job_id: UUID) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        while True:
            began = time.perf_counter()
            writer.write(self.request(f"/v1/jobs/{job_id}"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))
            self.others.append(time.perf_counter() - began)
            await asyncio.sleep(OTHERS_S)

    def request(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\n{self.headers}".encode()

    def measure_memory(self) -> int:
        """The maximum so far, in bytes."""
        for process in psutil.process_iter(["cmdline"]):
            with suppress(psutil.Error):
                line = process.info["cmdline"] or []
                if "bench.harness.narrow" in line and str(self.port) in line:
                    self.memory = max(self.memory, process.memory_info().rss)
        return self.memory


class Reader(asyncio.Protocol):
    """Reads a stream and records when it received which image, with as little CPU as possible."""

    def __init__(self, fanout: Fanout, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.began, self.ended = loop.create_future(), loop.create_future()
        self._fanout = fanout
        self._request = request
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        text = self._rest + data
        end = 0
        for found in IMAGE_EVENT.finditer(text):
            self._fanout.receive(found[1], now)
            end = found.end()
        self._rest = text[max(end, len(text) - 100) :]
        if not self.began.done() and b"event: state" in text:
            self.began.set_result(None)
        if not self.ended.done() and b"event: end" in text:
            self.ended.set_result(None)
