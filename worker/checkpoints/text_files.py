"""JSON and vocabularies of checkpoints in the encodings that editors leave: UTF-8 with a byte order mark, and UTF-16.

Knows no layout. Imports no torch.
"""

import codecs
import json
from pathlib import Path
from typing import Any

ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
TEXTS = (".json", ".txt")


def read_object(file: Path) -> dict[str, Any]:
    """Raises OSError, or ValueError if it is no object of JSON."""
    try:
        content = json.loads(as_utf8(file.read_bytes()))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def has_mark(file: Path) -> bool:
    """Whether it is a text that begins with a byte order mark, which the libraries would take for content."""
    if file.suffix not in TEXTS:
        return False
    with file.open("rb") as content:
        return content.read(3).startswith((*ENCODINGS,))


def as_utf8(content: bytes) -> bytes:
    """The same text in UTF-8 without a mark. Raises ValueError."""
    encoding = next((encoding for mark, encoding in ENCODINGS.items() if content.startswith(mark)), None)
    return content.decode(encoding).encode() if encoding else content
