"""Requests byte by byte, as no client library sends them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

import httpx

JSON = "Content-Type: application/json"


class RawConnection:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def request(self, method: str, path: str, *headers: str, body: bytes = b"") -> None:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: farm", *filter(None, headers)])
        self.send(f"{head}\r\n\r\n".encode("latin-1") + body)

    def response(self) -> HTTPResponse:
        """The next answer; raises TimeoutError if none comes. A `100 Continue` is an answer too."""
        found = HTTPResponse(self.connection)
        found.begin()
        return found

    def first_line(self) -> bytes:
        with self.connection.makefile("rb") as answer:
            return answer.readline()

    def is_closed(self) -> bool:
        """Whether the other side closes the connection; raises TimeoutError if it does not."""
        try:
            while self.connection.recv(65_536):
                pass
        except ConnectionError:
            pass
        return True


@contextmanager
def raw_connection(url: str, timeout: float = 20) -> Iterator[RawConnection]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port), timeout=timeout) as connection:
        yield RawConnection(connection)


def authorization(client: httpx.Client) -> str:
    """The header with the client's key."""
    return f"Authorization: {client.headers['Authorization']}"
