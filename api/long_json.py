"""A JSON object with a long list of texts, its `prompts`. It is read text by text, so that other threads run between:
`json` stops them for as long as it parses.
"""

import json
import re
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined]
from typing import Any

from api import sentence
from api.bodies import MAX_BODY_BYTES, check_values
from common.errors import Invalid

PLACE = "-Infinity"  # what stands for the list while the rest is parsed
NAME = "prompts"
LIST = re.compile(r'"prompts"[ \t\n\r]*:[ \t\n\r]*\[')
SPACE = re.compile(r"[ \t\n\r]*")


def read(body: bytes) -> Any:
    """Raises ValueError for what is not JSON, and Invalid for a list that has something else than texts."""
    text = body.decode()
    texts: list[str] = []
    if begin := LIST.search(text):
        end = _read_texts(text, begin.end(), texts)
        text = f"{text[: begin.end() - 1]}{PLACE}{text[end:]}"
    if len(text) > MAX_BODY_BYTES:
        raise Invalid.field("body", sentence("rest_too_large", name=NAME, limit=MAX_BODY_BYTES))
    check_values(text.encode())
    return json.loads(text, parse_constant=lambda constant: texts if constant == PLACE else float(constant))


def _read_texts(text: str, at: int, texts: list[str]) -> int:
    """Read up to the end of the list; where that is."""
    at = _skip_space(text, at)
    if text[at : at + 1] == "]":
        return at + 1
    while text[at : at + 1] == '"':
        value, at = scanstring(text, at + 1)
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


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end() if text[at : at + 1].isspace() else at  # type: ignore[union-attr]
