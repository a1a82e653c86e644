"""Encodes images as PNG, WebP or JPEG files that carry metadata such as their recipe. Equal input gives equal bytes.

Uses little CPU, because it runs beside a GPU that must not wait. Does not know what the metadata means.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

isal_zlib: Any
try:
    from isal import isal_zlib
except ImportError:  # a platform without its wheel: the same pixels, in three times the time
    isal_zlib = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, UP = 2, 2  # PNG's colour type, and its filter that stores each row as the difference from the row above
QUALITY = 95
XMP_KEYWORD = "XML:com.adobe.xmp"  # of a PNG's text chunk


def encode(pixels: NDArray[np.uint8], format: str, metadata: Mapping[str, str], xmp: bytes | None = None) -> bytes:
    """The file of a height × width × RGB image. Keys of the metadata are short and ASCII; values are any Unicode.

    `xmp`: a packet of less than 65,000 bytes.
    """
    return {"png": _png, "webp": _webp, "jpeg": _jpeg}[format](pixels, metadata, xmp)


def _png(pixels: NDArray[np.uint8], metadata: Mapping[str, str], xmp: bytes | None) -> bytes:
    height, width = pixels.shape[:2]
    texts = {**metadata, XMP_KEYWORD: xmp.decode()} if xmp else metadata
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)),
        *(_chunk(b"iTXt", key.encode("ascii") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()),
        _chunk(b"IDAT", _deflate(_filtered(pixels))),
        _chunk(b"IEND", b""),
    ]
    return PNG_SIGNATURE + b"".join(chunks)


def _filtered(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each row after the byte of its filter: always UP, for a search for the best one takes longer than the rest."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width * 3)
    filtered = np.empty((height, 1 + width * 3), np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _deflate(rows: NDArray[np.uint8]) -> bytes:
    if isal_zlib:
        return bytes(isal_zlib.compress(rows.data, 1))
    compressor = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return compressor.compress(rows.data) + compressor.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _jpeg(pixels: NDArray[np.uint8], metadata: Mapping[str, str], xmp: bytes | None) -> bytes:
    """The metadata is one JSON object in comment segments of at most 65,533 bytes each."""
    file = _encode_with_pillow(pixels, "JPEG", quality=QUALITY, xmp=xmp)
    data = _json(metadata)
    parts = [data[at : at + 65_533] for at in range(0, len(data), 65_533)]
    comments = [b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts]
    head = 2 + 2 + int.from_bytes(file[4:6])  # the start marker and the JFIF segment, which must come first
    return b"".join((file[:head], *comments, file[head:]))


def _webp(pixels: NDArray[np.uint8], metadata: Mapping[str, str], xmp: bytes | None) -> bytes:
    """The metadata is one JSON object in the EXIF tag ImageDescription: WebP has no comments.

    Method 0 takes 0.4 of the time of the usual one, for 1.6% more bytes at the same quality.
    """
    exif = _exif(_json(metadata))
    return _encode_with_pillow(pixels, "WEBP", quality=QUALITY, method=0, exif=exif, xmp=xmp or b"")


def _exif(description: bytes) -> bytes:
    """A TIFF header and one directory with one tag: 0x010E, text; its bytes follow the directory."""
    description += b"\0"
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x010E, 2, len(description), 26, 0) + description


def _json(metadata: Mapping[str, str]) -> bytes:
    """In ASCII: readers do not agree on the encoding of comments and EXIF."""
    return json.dumps(dict(metadata)).encode("ascii")


def _encode_with_pillow(pixels: NDArray[np.uint8], format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()
