"""`python -m bench.harness.instant_store PORT`: an S3 server that discards what is stored.

Benches use it to show the farm's speed when the image store is not the limit. It checks nothing, and keeps only the
object that says whose a bucket is: without that no worker claims.
"""

import asyncio
import sys

from common.storage import MARK

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
DONE = b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: "00000000000000000000000000000000"\r\n\r\n'


MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
MARKS: dict[bytes, bytes] = {}  # by path


class Request(asyncio.Protocol):
    """One connection: heads are read whole, bodies are counted and dropped."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.head = b""
        self.body_left = 0
        self.mark: bytes | None = None  # the path, if this is such an object

    def data_received(self, data: bytes) -> None:
        while data:
            if self.body_left:
                taken = min(self.body_left, len(data))
                if self.mark:
                    MARKS[self.mark] = MARKS.get(self.mark, b"") + data[:taken]
                self.body_left, data = self.body_left - taken, data[taken:]
                if not self.body_left:
                    self._answer(DONE)
                continue
            self.head += data
            head, end, data = self.head.partition(b"\r\n\r\n")
            if not end:
                return
            self.head = b""
            verb, path = head.split(b" ", 2)[:2]
            self.mark = path if path.endswith(b"/" + MARK.encode()) else None
            if self.mark and verb != b"PUT":
                self._answer(found(MARKS.get(self.mark)))
                continue
            if self.mark:
                MARKS.pop(self.mark, None)
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
            self.body_left = int(fields.get(b"content-length", b"0"))
            if fields.get(b"expect") == b"100-continue":
                self._answer(CONTINUE)
            if not self.body_left:
                self._answer(DONE)

    def _answer(self, answer: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(answer)


def found(mark: bytes | None) -> bytes:
    return DONE.replace(b"Length: 0", b"Length: %d" % len(mark)) + mark if mark else MISSING


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Request, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
