"""Finds the labels in the file of a picture, whoever wrote it, and keeps one when a picture is encoded again.

Looks where the standard's practice guide puts them (XMP: `TC260:AIGC`), and where programs put them besides: a text
chunk that is named AIGC, a comment that holds `{"AIGC": {…}}`. Of other formats than PNG, JPEG and WebP it finds XMP
packets. What a label says is not checked here. Takes time that is linear in the file.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any
from xml.etree import ElementTree

from common.labels.label import NAMESPACE, FoundLabel
from common.labels.metadata import Block, blocks, format_of

TAG = f"{{{NAMESPACE}}}AIGC"
KEY = "AIGC"
MAX_PACKET = 1_000_000  # bytes of XMP that are parsed
PACKET_START, PACKET_END = b"<x:xmpmeta", b"</x:xmpmeta>"
ROOTS = (PACKET_START, b"<rdf:RDF")  # before them may stand what XML does not allow there
DECLARATION = re.compile(rb"<!(?:DOCTYPE|ENTITY)")
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
COMMENT_CODE = 8  # bytes before an Exif comment that name its encoding


def read_labels(data: bytes) -> list[FoundLabel]:
    """All labels of a file, in its order."""
    found = chain.from_iterable(map(_labels_of, blocks(data) if format_of(data) else _packets(data)))
    return [FoundLabel(place, _elements(text)) for place, text in found]


def labelled_xmp(data: bytes) -> bytes | None:
    """The XMP packet of a picture if a label is in it: for another file that is made of the picture."""
    packets = (block.data for block in blocks(data) if block.kind == "xmp")
    return next((packet for packet in packets if next(_of_xmp(packet), None) is not None), None)


def _labels_of(block: Block) -> Iterator[tuple[str, str]]:
    """The place and the text of each label in a block."""
    if block.kind == "xmp":
        yield from ((block.place, text) for text in _of_xmp(block.data))
    elif block.kind == "exif":
        yield from ((f"{block.place} {tag}", text) for tag, text in _of_exif(block.data))
    elif KEY in block.keyword:
        yield f"{block.place} {block.keyword}", _decode(block.data)
    elif _is_wrapped(text := _decode(block.data)):
        yield block.place, text


def _packets(data: bytes) -> Iterator[Block]:
    """XMP packets anywhere in a file."""
    at = 0
    while (start := data.find(PACKET_START, at)) >= 0 and (end := data.find(PACKET_END, start)) >= 0:
        at = end + len(PACKET_END)
        yield Block("xmp", f"XMP at byte {start}", data[start:at])


def _of_xmp(packet: bytes) -> Iterator[str]:
    """The texts of `TC260:AIGC`, an element or an attribute. Of XML that declares entities, or is none, nothing."""
    start = next((at for tag in ROOTS if (at := packet.find(tag)) >= 0), 0)
    end = packet.rfind(b">") + 1
    if end - start > MAX_PACKET or DECLARATION.search(packet):
        return
    try:
        root = ElementTree.fromstring(packet[start:end])
    except (ElementTree.ParseError, LookupError, ValueError):
        return
    for element in root.iter():
        if element.tag == TAG:
            yield "".join(element.itertext())
        if (text := element.get(TAG)) is not None:
            yield text


def _of_exif(data: bytes) -> Iterator[tuple[str, str]]:
    from PIL import Image  # loaded late: most files have none

    exif = Image.Exif()
    try:
        with warnings.catch_warnings(action="ignore"):
            exif.load(data)
            comment, description = exif.get_ifd(EXIF_IFD).get(USER_COMMENT), exif.get(IMAGE_DESCRIPTION)
    except Exception:  # Pillow raises whatever comes for damaged directories
        return
    for tag, value in (("UserComment", comment), ("ImageDescription", description)):
        if isinstance(value, bytes):
            code, value = value[:COMMENT_CODE], value[COMMENT_CODE:]
            value = value.decode("utf-16-be", "replace") if code.startswith(b"UNICODE") else _decode(value)
        if isinstance(value, str) and _is_wrapped(value):
            yield tag, value


def _is_wrapped(text: str) -> bool:
    return KEY in text and KEY in (_json(text) or {})


def _elements(text: str) -> Mapping[str, Any] | None:
    found = _json(text)
    inner = found.get(KEY, found) if found else None
    if isinstance(inner, str):
        inner = _json(inner)
    return {str(name): value for name, value in inner.items()} if isinstance(inner, dict) else None


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text.strip("\0 \t\r\n"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "replace")
