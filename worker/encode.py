"""Pictures to bytes: PNG, WebP or JPEG that carry texts such as their recipe. Equal input gives equal bytes.

Spends as little CPU as it can, for it runs beside a GPU that must not wait. Knows nothing of what the texts mean.
"""

import json
import struct
import zlib
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

PNG_HEAD = 8 + 25  # the signature and IHDR, which must come first
QUALITY = 95

# Named one by one: when a level alone is set, OpenCV drops these for slower ones that compress no better.
FAST_PNG = (
    (cv2.IMWRITE_PNG_COMPRESSION, 1),
    (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
)


def encode(pixels: NDArray[np.uint8], format: str, texts: Mapping[str, str]) -> bytes:
    """The file of a height × width × RGB picture. Keywords of texts are short and ASCII; their values any Unicode."""
    return {"png": _png, "webp": _webp, "jpeg": _jpeg}[format](pixels, texts)


def _png(pixels: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    file = _opencv(".png", pixels, *FAST_PNG)
    chunks = [_chunk(b"iTXt", key.encode("ascii") + b"\0\0\0\0\0" + text.encode()) for key, text in texts.items()]
    return b"".join((file[:PNG_HEAD], *chunks, file[PNG_HEAD:]))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg(pixels: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """The texts are one JSON object in comments; a comment holds 65,533 bytes, so a long one goes on in the next."""
    file = _opencv(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    note = _note(texts)
    parts = [note[at : at + 65_533] for at in range(0, len(note), 65_533)]
    comments = [b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts]
    head = 2 + 2 + int.from_bytes(file[4:6])  # the start marker and the JFIF segment, which must come first
    return b"".join((file[:head], *comments, file[head:]))


def _webp(pixels: NDArray[np.uint8], texts: Mapping[str, str]) -> bytes:
    """The texts are one JSON object in the EXIF tag ImageDescription: WebP has no comments of its own."""
    file = _opencv(".webp", pixels, (cv2.IMWRITE_WEBP_QUALITY, QUALITY))
    height, width = pixels.shape[:2]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = _riff(b"VP8X", b"\x08\0\0\0" + size)  # bit 3: EXIF follows the picture
    return _riff(b"RIFF", b"WEBP" + extended + file[12:] + _riff(b"EXIF", _exif(_note(texts))))


def _riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _exif(note: bytes) -> bytes:
    """A TIFF header and one directory with one tag: 0x010E, text, its bytes behind the directory."""
    note += b"\0"
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x010E, 2, len(note), 26, 0) + note


def _note(texts: Mapping[str, str]) -> bytes:
    """ASCII, for no reader agrees on the encoding of comments and EXIF."""
    return json.dumps(dict(texts)).encode("ascii")


def _opencv(extension: str, pixels: NDArray[np.uint8], *options: tuple[int, int]) -> bytes:
    flat = [number for option in options for number in option]
    done, file = cv2.imencode(extension, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), flat)
    assert done
    return file.tobytes()
