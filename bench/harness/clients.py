"""Clients with little overhead: each sends the same request again and again over one connection of its own.

The overhead of a request library would add to both sides of a comparison, and favour the slower one.
"""

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit


def hammer(url: str, headers: Mapping[str, str], body: bytes, clients: int, requests: int) -> list[float]:
    """The seconds of each request, in the order of their ends. Raises ConnectionError for an answer other than 201."""
    return asyncio.run(_hammer(url, headers, body, clients, requests))


async def _hammer(url: str, headers: Mapping[str, str], body: bytes, clients: int, requests: int) -> list[float]:
    place = urlsplit(url)
    lines = [f"POST {place.path} HTTP/1.1", f"Host: {place.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    request = "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + body
    took: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        while len(took) + in_flight[0] < requests:
            in_flight[0] += 1
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 201"):
                raise ConnectionError(head.partition(b"\r\n")[0].decode())
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            in_flight[0] -= 1
            took.append(time.perf_counter() - began)
        writer.close()

    in_flight = [0]
    await asyncio.gather(*(client() for _ in range(clients)))
    return took
