"""Bodies of requests: read only once the sender is known, and never more than the memory that they may take together.

What is refused here is raised where the application reads the body, as `Refused`, so that its handlers answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from api import sentence
from api.errors import Refused
from common.accounts.keys import Caller
from common.enums import Scope
from common.errors import EncodingUnsupported, Error, Forbidden, Invalid, LimitReached, Unavailable

MAX_BODY_BYTES = 1_000_000
MAX_VALUES = 1_000  # of JSON: each may be an error, and those cost a hundred times more
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # one without an end too: else time is quadratic
READ_ANYWAY = 65_536  # an unread body of so many bytes is in the server's buffer, or soon will be


@dataclass(frozen=True)
class Rule:
    """What the bodies of a path may be. `streamed`: bytes in memory of one that goes through a file, whatever its size.
    `scopes`: the sender needs one of them.
    """

    limit: int = MAX_BODY_BYTES
    streamed: int | None = None
    scopes: tuple[Scope, ...] = ()


class Memory:
    """The bytes of bodies in memory: `most` of all senders, half of that of each tenant."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[object, int] = {}

    def take(self, sender: object, size: int) -> None:
        """Raises LimitReached or Unavailable, and takes nothing, beyond a limit."""
        own = self.held.get(sender, 0) + size
        if own > self.most // 2:
            raise LimitReached(sentence("bodies_of_tenant", limit=self.most // 2))
        if sum(self.held.values()) + size > self.most:
            raise Unavailable(sentence("bodies_of_all"))
        self.held[sender] = own

    def release(self, sender: object, size: int) -> None:
        self.held[sender] -= size
        if not self.held[sender]:
            del self.held[sender]


class Body:
    """The body of one request, as the application receives it."""

    def __init__(self, request: Request, receive: Receive, rules: Mapping[str, Rule], memory: Memory) -> None:
        headers = request.headers
        self._request = request
        self._receive = receive
        self._rule = rules.get(request.scope["path"], Rule())
        self._memory = memory
        self._declared = int(n) if re.fullmatch(r"[0-9]{1,18}", n := headers.get("content-length", "")) else 0
        self._is_open = False
        self._is_read = not self._declared and "transfer-encoding" not in headers  # there is none
        self._is_small = 0 < self._declared <= READ_ANYWAY and "expect" not in headers
        self._sender: object = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._taken = 0

    @property
    def leaves_bytes(self) -> bool:
        """Whether the client may still be sending, or wait for leave to."""
        return not self._is_read and not self._is_small

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()
        if not self._is_open:  # first: the client may wait for `100 Continue` or an answer before it sends the body
            await self._open()
        message = await self._receive()
        chunk = message.get("body", b"")
        self._size += len(chunk)
        self._check_size(self._size)
        self._is_read = not message.get("more_body", False)
        if self._rule.streamed is None:
            self._take(len(chunk))
            self._check_values(chunk)
        return message

    def release(self) -> None:
        """The request has ended."""
        if self._taken:
            self._memory.release(self._sender, self._taken)
            self._taken = 0

    async def _open(self) -> None:
        """Raises Refused unless the body may be read."""
        try:
            sender = await self._request.state.sender()
        except Error as error:
            raise Refused(error) from error
        if isinstance(sender, Caller):
            if self._rule.scopes and not any(map(sender.may, self._rule.scopes)):
                raise Refused(Forbidden(sentence("scope_missing", scope=self._rule.scopes[0])))
            self._sender = sender.tenant_id
        if (encoding := self._request.headers.get("content-encoding", "identity")).lower() != "identity":
            raise Refused(EncodingUnsupported(sentence("encoding_unsupported", encoding=encoding[:50])))
        self._check_size(self._declared)
        if self._rule.streamed is not None:
            self._take(self._rule.streamed)
        self._is_open = True

    def _check_size(self, size: int) -> None:
        if size > self._rule.limit:
            raise HTTPException(413, sentence("body_too_large", limit=self._rule.limit))

    def _check_values(self, chunk: bytes) -> None:
        if self._rule.limit > MAX_BODY_BYTES or not is_json(self._request):
            return
        self._chunks.append(chunk)
        if self._is_read:
            body, self._chunks = b"".join(self._chunks), []
            try:
                check_values(body)
            except Invalid as error:
                raise Refused(error) from error

    def _take(self, size: int) -> None:
        try:
            self._memory.take(self._sender, size)
        except Error as error:
            raise Refused(error) from error
        self._taken += size


def check_values(body: bytes) -> None:
    """Raises Invalid for JSON of too many values."""
    if body.count(b",") >= MAX_VALUES and STRING.sub(b"", body).count(b",") >= MAX_VALUES:
        raise Invalid.field("body", sentence("too_many_values", most=MAX_VALUES))


def is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type.startswith("application/") and media_type.endswith(("/json", "+json"))
