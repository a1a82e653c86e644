"""The metadata of a PNG, JPEG or WebP file, block by block, whoever wrote it. Decodes no pixel.

Reads what is there of a damaged file. Takes time and memory that are linear in the file; knows no labels.
"""

import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

PNG_SIGNATURE, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
XMP_KEYWORD = b"XML:com.adobe.xmp"
XMP_HEADER, EXIF_HEADER = b"http://ns.adobe.com/xap/1.0/\0", b"Exif\0\0"
MAX_INFLATED = 4_000_000  # bytes of one compressed text
ALONE = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a length
COMMENT, APP1, START_OF_SCAN = 0xFE, 0xE1, 0xDA
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}

Kind = Literal["xmp", "exif", "text"]


class Block(NamedTuple):
    """`place`: where it lies in the file, for people. `keyword` of a text: empty for a comment."""

    kind: Kind
    place: str
    data: bytes
    keyword: str = ""


def format_of(data: bytes) -> str | None:
    """png, jpeg or webp; None for any other file."""
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(JPEG_START):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def blocks(data: bytes) -> Iterator[Block]:
    """The blocks of metadata in the order of the file; none for a file of another format."""
    if read := {"png": _png, "jpeg": _jpeg, "webp": _webp}.get(format_of(data) or ""):
        yield from read(data)


def _png(data: bytes) -> Iterator[Block]:
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size] if kind in (b"iTXt", b"tEXt", b"zTXt", b"eXIf") else b""
        at += 12 + size
        if kind == b"eXIf":
            yield Block("exif", "PNG eXIf", body)
        elif body and (text := _png_text(kind, body)) is not None:
            keyword, place = body.partition(b"\0")[0], f"PNG {kind.decode()}"
            if keyword == XMP_KEYWORD:
                yield Block("xmp", f"{place} XMP", text)
            else:
                yield Block("text", place, text, keyword.decode("latin-1"))


def _png_text(kind: bytes, body: bytes) -> bytes | None:
    """None where it cannot be inflated."""
    rest = body.partition(b"\0")[2]
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflate(rest[1:])
    is_compressed, text = rest[:1] == b"\1", b"".join(rest[2:].split(b"\0", 2)[2:])
    return _inflate(text) if is_compressed else text


def _inflate(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, MAX_INFLATED)
    except zlib.error:
        return None


def _jpeg(data: bytes) -> Iterator[Block]:
    at = len(JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == START_OF_SCAN:
            return
        size = int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + size]
        at += 2 + max(size, 2)
        if marker == APP1 and body.startswith(XMP_HEADER):
            yield Block("xmp", "JPEG APP1 XMP", body[len(XMP_HEADER) :])
        elif marker == APP1 and body.startswith(EXIF_HEADER):
            yield Block("exif", "JPEG APP1 Exif", body[len(EXIF_HEADER) :])
        elif marker == COMMENT:
            yield Block("text", "JPEG COM", body)


def _webp(data: bytes) -> Iterator[Block]:
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size] if kind in (b"XMP ", b"EXIF") else b""
        at += 8 + size + size % 2
        if kind == b"XMP ":
            yield Block("xmp", "WebP XMP", body)
        elif kind == b"EXIF":
            yield Block("exif", "WebP EXIF", body.removeprefix(EXIF_HEADER))
