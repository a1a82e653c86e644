"""The texts that a picture carries, such as its recipe and the class of its worker:

what `worker.render.encode` wrote into it.

Reads no pixel, and needs none of the libraries that do.
"""

import json
import struct
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"


def read(data: bytes) -> dict[str, str]:
    """The texts by keyword; none where the file is not one of ours."""
    try:
        if data.startswith(PNG_SIGNATURE):
            return dict(_png(data))
        note = b"".join(_jpeg(data)) if data.startswith(JPEG_SIGNATURE) else _webp(data)
        found = json.loads(note) if note else {}
    except (IndexError, ValueError, struct.error):
        return {}
    return {str(key): str(text) for key, text in found.items()} if isinstance(found, dict) else {}


def _png(data: bytes) -> Iterator[tuple[str, str]]:
    at = len(PNG_SIGNATURE)
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":  # ours come before it
            return
        if kind == b"iTXt":
            key, _, rest = data[at + 8 : at + 8 + size].partition(b"\0")
            yield key.decode("ascii"), rest[2:].split(b"\0", 2)[-1].decode()
        at += 12 + size


def _jpeg(data: bytes) -> Iterator[bytes]:
    """The comments, one after the other."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:  # the scan: the pixels follow
        size = int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == 0xFE:
            yield data[at + 4 : at + 2 + size]
        at += 2 + size


def _webp(data: bytes) -> bytes:
    """The EXIF tag ImageDescription, whose text is behind the one directory."""
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            length, offset = struct.unpack_from("<II", data, at + 8 + 14)
            return data[at + 8 + offset : at + 8 + offset + length].rstrip(b"\0")
        at += 8 + size + size % 2
    return b""
