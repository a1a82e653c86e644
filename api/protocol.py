"""HTTP/1.1 on a connection: uvicorn's protocol, with the limits that it lacks. Knows no request of ours.

A head that is late or has no end, and a body that makes no progress, end the connection. When too many connections have
no request, the oldest of them is closed. One with a request is never cut: event streams, waits and slow uploads go on.
"""

import asyncio
import json
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from api import sentence
from api.errors import MEDIA_TYPE, RETRY_AFTER_S, problem_content
from api.live.event_stream import ABORT
from api.middleware import MAX_HEAD_BYTES
from common.sentences import Sentence

HEAD_S = 10.0  # until the head of a request is complete
PROGRESS_S, PROGRESS_BYTES = 20.0, 10_000  # so many bytes of a body in each such time, or its end
LINGER_S, LINGER_BYTES = 2.0, 1_000_000  # what is still read, and dropped, from a client that was refused
MAX_WAITING = 1_000  # connections without a request
SPARE_FILES = 100  # descriptors for all else: services, temporary files

waiting_of: WeakKeyDictionary[ServerState, OrderedDict["Protocol", None]] = WeakKeyDictionary()


class Protocol(HttpToolsProtocol):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting = waiting_of.setdefault(self.server_state, OrderedDict())
        self._timer: asyncio.TimerHandle | None = None
        self._in_body = False
        self._head_bytes = self._body_bytes = self._dropped_bytes = 0
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            self._answer(503, "unavailable", sentence("too_many_connections"), f"retry-after: {RETRY_AFTER_S}\r\n")
            transport.close()
            return
        self._waiting[self] = None
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popitem(last=False)[0].transport.abort()
        self._set_timer(HEAD_S, self._end_late_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.pop(self, None)
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingers:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._lingers or self.transport.is_closing():
            return
        if self._in_body:
            if self._timer is None:
                self._set_timer(PROGRESS_S, self._end_stalled_body)
        elif self._head_bytes > MAX_HEAD_BYTES:  # without its end; the middleware judges a complete one
            self._refuse(431, "head_too_large", sentence("head_endless", limit=MAX_HEAD_BYTES))
        elif self._timer is None and self._is_idle:
            self._set_timer(HEAD_S, self._end_late_head)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "not_http", sentence("request_not_http"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # Lets a response abort its connection: a close would wait until the client has read everything.
        self.scope["extensions"] = {ABORT: {"now": self.transport.abort}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = Closing(self)  # type: ignore[assignment]
        self._waiting.pop(self, None)
        self._cancel_timer()
        self._in_body, self._body_bytes = True, 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._cancel_timer()
        self._in_body, self._head_bytes = False, 0

    def on_response_complete(self) -> None:
        if self._lingers:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._is_idle and not self._in_body and not self.transport.is_closing():
            self._waiting[self] = None

    def linger(self) -> None:
        """End our side. What the client still sends is read for a moment: else the connection is reset, and the answer
        may be lost.
        """
        if not self.transport.is_closing() and not self._lingers:
            self._lingers = True
            self.transport.write_eof()
            self.flow.resume_reading()
            self._set_timer(LINGER_S, self.transport.abort)

    def close(self) -> None:
        if self._in_body:
            self.linger()
        else:
            self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """No request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _set_timer(self, seconds: float, end: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, end)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_late_head(self) -> None:
        if self._head_bytes:
            self._refuse(408, "timeout", sentence("head_late"))
        else:
            self.transport.close()

    def _end_stalled_body(self) -> None:
        if self._body_bytes < PROGRESS_BYTES and not self.flow.read_paused:  # paused: the application does not read
            self._refuse(408, "timeout", sentence("body_late"))
        else:
            self._body_bytes = 0
            self._set_timer(PROGRESS_S, self._end_stalled_body)

    def _refuse(self, status: int, code: str, detail: Sentence) -> None:
        """Answer what is no request that the application could, unless another answer has begun, and end."""
        if self._is_idle or (self._in_body and not self.cycle.response_started):
            self._answer(status, code, detail)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.linger()

    def _answer(self, status: int, code: str, detail: Sentence, headers: str = "") -> None:
        content = json.dumps(problem_content(status, code, detail), ensure_ascii=False).encode()
        lines = [b"%s: %s\r\n" % header for header in self.server_state.default_headers]
        lines.append(f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(content)}\r\n{headers}".encode())
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"connection: close\r\n\r\n", content]))


class Closing:
    """The transport of a response: closed without a reset."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close


def most_connections() -> int:
    """As many as the process may have files."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if most == resource.RLIM_INFINITY else max(most - SPARE_FILES, 1)
