"""What hostile input costs others. One tenant, or a stranger without a key, sends what is meant to be expensive:
prompts that are slow to parse (`text`), Parquet files of three million nulls and CSV files with headers of 200,000
characters (`readers`), over-long prompts of rare characters and PNG files of 100,000 chunks (`memory`), bodies of 10 MB
and headers that never end, without a key (`strangers`). Meanwhile another tenant submits jobs of one image and batches
of 200 prompts to the same API, control worker and render worker (a fake GPU), and reads `/healthz`. `alone` is that
tenant by itself. The memory of the API is read before, and once the requests have ended.
"""

import io
import itertools
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from statistics import median, quantiles
from urllib.parse import urlsplit

import httpx
import pyarrow
from pyarrow import parquet

from bench.cases.million import post, process_of
from bench.harness.farm import farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.db import connect

KINDS = ("text", "readers", "memory", "strangers")
GOALS = (
    *(Goal(kind, measure="healthz, p99 ms", at_most=250) for kind in KINDS),
    *(Goal(kind, "alone", "job, s", at_most=2) for kind in KINDS),
    *(Goal(kind, "alone", "batch, s", at_most=2) for kind in KINDS),
    *(Goal(kind, measure="memory of the API, MB more", at_most=50) for kind in KINDS),
)
ROUNDS = 1  # each takes two minutes
DEVICE = "stub:0.02"
RECIPE = {"model": "mini-zh", "width": 128, "height": 128, "steps": 2}
BATCH_PROMPTS = 200
HELD_CONNECTIONS = 60  # each with a body that lacks its last bytes
HELD_BYTES = 9_900_000
CHUNKS = 100_000
PAUSE_S = 0.1  # what is measured is the cost of a request, not of a flood
Attack = Callable[[httpx.Client, threading.Event], None]


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    seconds = 5 if options.quick else 20
    with (
        farm() as the_farm,
        the_farm.api(the_farm.settings) as url,
        the_farm.control(the_farm.settings),
        the_farm.worker(the_farm.settings, DEVICE, "--models", str(RECIPE["model"])),
    ):
        database = connect(the_farm.settings, pool=1)
        keys = [the_farm.key(database, tenant) for tenant in ("victim", "attacker")]
        database.dispose()
        victim, attacker = [client_of(url, key) for key in keys]
        attacks: dict[str, list[Attack]] = {
            "alone": [],
            "text": [submit_weights, submit_weight_batches],
            "readers": [submit_nulls, dry_run_nulls, dry_run_header],
            "memory": [dry_run_rare_characters, upload_chunks],
            "strangers": [send_without_key, hold_bodies, hold_headers],
        }
        others = Others(victim, url)
        others.figures(2)  # what only the first requests need is in memory then
        nulls(), png_of_chunks()  # they take the bench itself a while
        yield {kind: partial(beside, others, attacker, some, seconds) for kind, some in attacks.items()}


def client_of(url: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=300, trust_env=False)


def beside(others: "Others", attacker: httpx.Client, attacks: list[Attack], seconds: float) -> Figures:
    """The other tenant's figures while these attacks go on, two of each at a time."""
    memory, stop = others.api.memory_info().rss, threading.Event()

    def repeat(attack: Attack) -> None:
        while not stop.is_set():
            with suppress(httpx.HTTPError, OSError):
                attack(attacker, stop)
            stop.wait(PAUSE_S)

    threads = [threading.Thread(target=repeat, args=(attack,)) for attack in attacks for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(1 if attacks else 0)
    figures = others.figures(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    time.sleep(5)  # for the API to free what those requests had
    return {**figures, "memory of the API, MB more": (others.api.memory_info().rss - memory) / 1e6}


class Others:
    """The jobs and batches of another tenant, and the checks of the API's health, timed."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self.client = client
        self.prober = httpx.Client(base_url=url, timeout=300, trust_env=False)  # a new one reads certificates each time
        self.api = process_of(url)

    def figures(self, seconds: float) -> Figures:
        health: list[float] = []
        jobs: list[float] = []
        batches: list[float] = []
        end = time.monotonic() + seconds

        def time_until_end(act: Callable[[], object], took: list[float], pause: float) -> None:
            while not took or time.monotonic() < end:
                began = time.perf_counter()
                act()
                took.append(time.perf_counter() - began)
                time.sleep(pause)

        acts = ((self.check_health, health, 0.05), (self.render_job, jobs, 0.1), (self.render_batch, batches, 0.1))
        threads = [threading.Thread(target=time_until_end, args=arguments) for arguments in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {
            "healthz, p99 ms": 1000 * (quantiles(health, n=100)[98] if len(health) > 1 else health[0]),
            "job, s": median(jobs),
            "batch, s": median(batches),
        }

    def check_health(self) -> None:
        self.prober.get("/healthz").raise_for_status()

    def render_job(self) -> None:
        job = post(self.client, "/v1/jobs", json={"prompt": "红色的圆形", **RECIPE}, headers={"Prefer": "wait=60"})
        path = f"/v1/jobs/{job['id']}"
        wait_until(lambda: self.client.get(path).json()["state"] == "succeeded", seconds=300)

    def render_batch(self) -> None:
        batch = post(self.client, "/v1/batches", json={"prompts": ["蓝色的三角形"] * BATCH_PROMPTS, "defaults": RECIPE})
        path = f"/v1/batches/{batch['id']}"
        wait_until(lambda: self.client.get(path).json()["state"] == "ended", seconds=600)


# What is slow to parse

SLOW_PROMPT = "(:" + "1" * 7990


def submit_weights(client: httpx.Client, stop: threading.Event) -> None:
    client.post("/v1/jobs", json={"prompt": SLOW_PROMPT, **RECIPE})


def submit_weight_batches(client: httpx.Client, stop: threading.Event) -> None:
    client.post("/v1/batches", json={"prompts": [SLOW_PROMPT] * 6, "defaults": RECIPE})
    stop.wait(2)


# Rows that yield nothing


@cache
def nulls() -> bytes:
    file = io.BytesIO()
    prompts = pyarrow.concat_arrays([pyarrow.nulls(3_000_000, pyarrow.string()), pyarrow.array(["红色的圆形"])])
    parquet.write_table(pyarrow.table({"prompt": prompts}), file)
    return file.getvalue()


def submit_nulls(client: httpx.Client, stop: threading.Event) -> None:
    upload = post(client, "/v1/uploads", content=nulls(), headers={"Content-Type": "application/vnd.apache.parquet"})
    batch = post(client, "/v1/batches", json={"upload": upload["id"], "defaults": RECIPE})
    stop.wait(0.5)
    client.post(f"/v1/batches/{batch['id']}/cancel")


def dry_run_nulls(client: httpx.Client, stop: threading.Event) -> None:
    upload = post(client, "/v1/uploads", content=nulls(), headers={"Content-Type": "application/vnd.apache.parquet"})
    client.post("/v1/batches?dry_run=true", json={"upload": upload["id"], "defaults": RECIPE})


def dry_run_header(client: httpx.Client, stop: threading.Event) -> None:
    file = ("prompt," + "x" * 200_000 + "\n红色的圆形,1\n").encode()
    upload = post(client, "/v1/uploads", content=file, headers={"Content-Type": "text/csv"})
    client.post("/v1/batches?dry_run=true", json={"upload": upload["id"], "defaults": RECIPE})


# What stays in memory

counted = itertools.count()


def dry_run_rare_characters(client: httpx.Client, stop: threading.Event) -> None:
    start = 0x20000 + 50 * next(counted) % 40_000
    prompts = ["".join(chr(start + (place + row) % 50) for place in range(7_990)) for row in range(50)]
    client.post("/v1/batches?dry_run=true", json={"prompts": prompts, "defaults": RECIPE})


@cache
def png_of_chunks() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * 8 for _ in range(8)))
    some = chunk(b"tEXt", b"a\0b") * CHUNKS
    return b"\x89PNG\r\n\x1a\n" + head + some + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def upload_chunks(client: httpx.Client, stop: threading.Event) -> None:
    client.post("/v1/uploads", content=png_of_chunks(), headers={"Content-Type": "image/png"})


# Without a key

EMPTY_OBJECTS = b'{"prompts": [' + b"{}," * 3_300_000 + b"{}]}"


def send_without_key(client: httpx.Client, stop: threading.Event) -> None:
    httpx.post(f"{client.base_url}/v1/batches", content=EMPTY_OBJECTS, timeout=60, trust_env=False)


def hold_bodies(client: httpx.Client, stop: threading.Event) -> None:
    head = f"POST /v1/batches HTTP/1.1\r\nHost: a\r\nContent-Length: {HELD_BYTES + 100}\r\n"
    hold(client, stop, HELD_CONNECTIONS // 2, f"{head}Content-Type: application/json\r\n\r\n".encode(), HELD_BYTES)


def hold_headers(client: httpx.Client, stop: threading.Event) -> None:
    hold(client, stop, 100, b"POST /v1/batches HTTP/1.1\r\nHost: a\r\nX-Slow: ", 0)


def hold(client: httpx.Client, stop: threading.Event, count: int, head: bytes, body_bytes: int) -> None:
    """Open so many connections, send a part of a request on each, and keep them open until the end."""
    address = urlsplit(str(client.base_url))
    block = b'{"prompts": ["' + b"a" * body_bytes if body_bytes else b""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(
                socket.create_connection((address.hostname or "", address.port or 0), timeout=10)
            )
            with suppress(OSError):
                connection.sendall(head + block)
        stop.wait(60)
