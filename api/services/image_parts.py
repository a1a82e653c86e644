"""The parts that an image file consists of: chunks, segments and scans, counted before anything is decoded.

Decoders take time and memory for each part, however small it is. Reads headers only, and stops at the limit.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from api import sentence
from common.errors import PictureRefused

FREE_PARTS = 1000  # allowed in a file of any size
BYTES_PER_PART = 4096  # one more is allowed for each; libpng writes its data in chunks of 8192
OF_PNG = {b"iCCP": 4, b"iTXt": 64, b"zTXt": 64}  # each may inflate to 1 MB
OF_JPEG = {  # by the markers
    b"\xff\xda": 32,  # scans: each is a pass over all pixels; encoders write 10
    b"\xff\xed": 16,  # Photoshop's blocks, which Pillow reads one by one
}
PNG, RIFF, JPEG = b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8"
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # inside a scan, where all others are data
BLOCK_BYTES = 65_536


def check_parts(file: BinaryIO, size: int) -> None:
    """Raises PictureRefused for a file of more parts than any real image has."""
    file.seek(0)
    start = file.read(8)
    most, limits = FREE_PARTS + size // BYTES_PER_PART, dict[bytes, int]()
    parts: Iterator[bytes]
    if start == PNG:
        parts, limits = _png_chunks(file), OF_PNG
    elif start.startswith(RIFF):
        parts = _riff_chunks(file)
    elif start.startswith(JPEG):
        parts, limits = _jpeg_segments(file), OF_JPEG
    else:
        return
    found = dict.fromkeys(limits, 0)
    for count, part in enumerate(parts, 1):
        if part in found:
            found[part] += 1
        if count > most or found.get(part, 0) > limits.get(part, 0):
            raise PictureRefused(sentence("image_too_many_parts"))
    file.seek(0)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(len(PNG))
    while len(head := file.read(8)) == 8:
        yield head[4:]
        if head[4:] == b"IEND":
            return
        file.seek(int.from_bytes(head[:4]) + 4, 1)


def _riff_chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(12)
    while len(head := file.read(8)) == 8:
        yield head[:4]
        length = int.from_bytes(head[4:], "little")
        file.seek(length + length % 2, 1)


def _jpeg_segments(file: BinaryIO) -> Iterator[bytes]:
    """The segments up to the end of the image; each byte between them, which decoders skip, counts as one."""
    file.seek(2)
    while head := file.read(2):
        if len(head) < 2 or head[0] != 0xFF or head[1] in (0x00, 0xFF):
            yield b""
            file.seek(1 - len(head), 1)
        elif head[1] in WITHOUT_LENGTH:
            yield head
        elif head[1] == END_OF_IMAGE:
            return
        else:
            yield head
            file.seek(max(int.from_bytes(file.read(2)) - 2, 0), 1)
            if head[1] == START_OF_SCAN:
                _skip_scan(file)


def _skip_scan(file: BinaryIO) -> None:
    """To the next marker that ends the data of a scan, or to the end."""
    while block := file.read(BLOCK_BYTES):
        if found := MARKER.search(block):
            file.seek(found.start() - len(block), 1)
            return
        if len(block) == BLOCK_BYTES:
            file.seek(-1, 1)  # a marker may begin with its last byte
