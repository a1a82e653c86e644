"""A JSON array, or objects one after the other on any lines, as an object a line. Runs in the child process only."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.raw_lines import MAX_LINE_BYTES

BLOCK_BYTES = 250_000
BETWEEN = re.compile(r"[ \t\r\n,]*")  # a comma too many is nobody's loss
decode = json.JSONDecoder().raw_decode
to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def convert(source: BinaryIO, target: BinaryIO, kind: str, codec: str) -> None:
    """Raises Invalid, with the number of the first item that is no JSON."""
    for item in _items(_texts(source, codec)):
        target.write(_line(item))
    if not target.tell():
        raise Invalid(sentence("file_without_rows"))


def _line(item: Any) -> bytes:
    try:
        return (to_json(item) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may have
        return (json.dumps(item) + "\n").encode()


def _texts(source: BinaryIO, codec: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(codec)()
    while block := source.read(BLOCK_BYTES):
        yield decoder.decode(block)
    yield decoder.decode(b"", True)


def _items(texts: Iterator[str]) -> Iterator[Any]:
    """Each item of the array, or each object. In memory are a block and an item."""
    text, number, end = next(texts, "").removeprefix("\ufeff").lstrip(), 1, ""
    at = 0
    if text.startswith("["):
        at, end = 1, "]"
    while True:
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        if at < len(text) and text[at] == end:
            break
        try:
            item, at = decode(text, at)
            yield item
            number += 1
        except RecursionError:
            raise Invalid(sentence("item_not_json", number=number)) from None
        except ValueError:  # also where the rest of the item is not read yet
            block = next(texts, None)
            if block is None:
                break
            if len(text) - at > MAX_LINE_BYTES:
                raise Invalid(sentence("item_not_json", number=number)) from None
            text, at = text[at:] + block, 0
    if text[at:].rstrip() != end or any(block.strip() for block in texts):
        raise Invalid(sentence("item_not_json", number=number))
