"""A JSON object with a long list of texts, its `prompts`. It is read text by text, so that other threads run between:
`json` stops them for as long as it parses. Some of the texts may be objects.
"""

import json
import re
from json.decoder import JSONDecodeError, JSONDecoder, scanstring  # type: ignore[attr-defined]
from typing import Any

from api import sentence
from api.bodies import MAX_BODY_BYTES, check_values
from common.errors import Invalid

PLACE = "-Infinity"  # what stands for the list while the rest is parsed
NAME = "prompts"
LIST = re.compile(r'"prompts"[ \t\n\r]*:[ \t\n\r]*\[')
MAX_OBJECTS, MAX_OBJECT, MAX_COMMAS = 10_000, 50_000, 200_000  # of a request; characters of one; within all of them
SPACE = re.compile(r"[ \t\n\r]*")


def read(body: bytes) -> Any:
    """Raises ValueError for what is not JSON, and Invalid for a list that has something else than texts and a number of
    objects.
    """
    text = body.decode()
    texts: list[Any] = []
    if begin := LIST.search(text):
        end = _read_texts(text, begin.end(), texts)
        text = f"{text[: begin.end() - 1]}{PLACE}{text[end:]}"
    if len(text) > MAX_BODY_BYTES:
        raise Invalid.field("body", sentence("rest_too_large", name=NAME, limit=MAX_BODY_BYTES))
    check_values(text.encode())
    return json.loads(text, parse_constant=lambda constant: texts if constant == PLACE else float(constant))


def _read_texts(text: str, at: int, texts: list[Any]) -> int:
    """Read up to the end of the list; where that is."""
    at, objects = _skip_space(text, at), _Objects()
    if text[at : at + 1] == "]":
        return at + 1
    while (first := text[at : at + 1]) and first in '"{':
        value, at = scanstring(text, at + 1) if first == '"' else objects.read(text, at, len(texts))
        texts.append(value)
        at = _skip_space(text, at)
        if text[at : at + 1] == "]":
            return at + 1
        if text[at : at + 1] != ",":
            raise JSONDecodeError("Expecting ',' delimiter", text, at)
        at = _skip_space(text, at + 1)
    if text[at : at + 1] in "]}:," or at == len(text):
        raise JSONDecodeError("Expecting value", text, at)
    raise Invalid.field(f"{NAME}.{len(texts)}", sentence("not_a_text"))


class _Objects:
    """Reads the objects of a list, as long as they are few."""

    def __init__(self) -> None:
        self._count = self._commas = 0

    def read(self, text: str, at: int, place: int) -> tuple[Any, int]:
        """The object at `at`, and where it ends."""
        part = text[at : at + MAX_OBJECT]
        try:
            found, size = JSONDecoder().raw_decode(part)
        except JSONDecodeError as error:
            if len(part) == MAX_OBJECT:
                raise Invalid.field(f"{NAME}.{place}", sentence("object_too_long", most=MAX_OBJECT)) from None
            raise JSONDecodeError(error.msg, text, at + error.pos) from None
        self._count, self._commas = self._count + 1, self._commas + part.count(",", 0, size)
        if self._count > MAX_OBJECTS or self._commas > MAX_COMMAS:
            raise Invalid.field(f"{NAME}.{place}", sentence("too_many_objects", most=MAX_OBJECTS))
        return found, at + size


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end() if text[at : at + 1].isspace() else at  # type: ignore[union-attr]
