"""The encoding of a file of text, told by all of its bytes, and its bytes as UTF-8. Pure.

It is not guessed from a part or from frequencies: it is what a byte order mark says, or else UTF-8 if all of the file
is valid UTF-8, or else UTF-16 if it has zero bytes and is valid UTF-16, or else GB18030, which Excel and Notepad write
on a Chinese Windows (GBK and GB2312 are parts of it).
"""

import codecs
from collections.abc import Callable, Iterator
from typing import BinaryIO

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.formats import ENCODINGS, GB18030, UTF8, UTF16
from common.prompt_files.raw_lines import count_line_ends

CHINESE = ("gb18030", "gbk", "gb2312")  # as Python names them; the first one includes the others
MARKS = {codecs.BOM_UTF8: UTF8, codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
BLOCK_BYTES = 1_000_000
NEWLINE = 1000  # what it counts among ASCII characters
ZEROS = 0.01  # of a file's bytes; text of UTF-8 with more of them is UTF-16 that happens to be valid


def codec_of(file: BinaryIO, charset: str | None = None) -> str:
    """The codec of a whole file: `utf-8`, `utf-16-le`, `utf-16-be` or `gb18030`. `charset` is what the client names.

    Raises Invalid, which names the encodings that were tried.
    """
    file.seek(0)
    head = file.read(3)
    marked = next((codec for mark, codec in MARKS.items() if head.startswith(mark)), None)
    if marked in ("utf-16-le", "utf-16-be"):
        return _checked(file, marked)
    if charset:
        return _checked(file, _supported(charset))
    has_zeros = _count_zeros(file)
    invalid = _first_invalid_line(file, UTF8)
    if invalid is None and has_zeros < ZEROS * file.seek(0, 2):
        return UTF8
    if has_zeros and (codec := _utf16_without_mark(file)):
        return codec
    if invalid is None:
        return UTF8
    if (line := _first_invalid_line(file, GB18030)) is None:
        return GB18030
    raise Invalid(sentence("encoding_unknown", utf8=invalid, gb18030=line))


def name_of(codec: str) -> str:
    """What people call a codec's encoding, as it is stored."""
    return UTF16 if codec.startswith(UTF16) else codec


def as_utf8(file: BinaryIO, codec: str) -> Iterator[bytes]:
    """The bytes of a whole file in UTF-8."""
    decoder = codecs.getincrementaldecoder(codec)()
    yield from (decoder.decode(block).encode() for block in _blocks(file))
    yield decoder.decode(b"", final=True).encode()


def _checked(file: BinaryIO, codec: str) -> str:
    if line := _first_invalid_line(file, codec):
        raise Invalid(sentence("not_in_charset", line=line, encoding=ENCODINGS[name_of(codec)]))
    return codec


def _supported(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        name = ""
    if name in CHINESE:
        return GB18030
    if name in (UTF8, "utf-8-sig", "ascii"):
        return UTF8
    if name in ("utf-16", "utf-16-le", "utf-16-be"):
        return "utf-16-be" if name == "utf-16-be" else "utf-16-le"
    raise Invalid(sentence("charset_unsupported"))


def _utf16_without_mark(file: BinaryIO) -> str | None:
    """The byte order in which the file is valid and has more ASCII characters, above all ends of lines."""
    ascii = {codec: _count(file, codec, _count_ascii) for codec in ("utf-16-le", "utf-16-be")}
    best = max(ascii, key=lambda codec: ascii[codec])
    return best if ascii[best] > 0 else None


def _count_ascii(text: str) -> int:
    if "\0" in text:
        raise ValueError
    return NEWLINE * text.count("\n") + len(text.encode("ascii", "ignore"))  # 一 is N in the other order


def _count(file: BinaryIO, codec: str, measure: Callable[[str], int]) -> int:
    """The sum over the blocks of a file; -1 if it is not of this codec."""
    decoder = codecs.getincrementaldecoder(codec)()
    try:
        return sum(measure(decoder.decode(block)) for block in _blocks(file)) + measure(decoder.decode(b"", True))
    except ValueError:
        return -1


def _count_zeros(file: BinaryIO) -> int:
    return sum(block.count(0) for block in _blocks(file))


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(BLOCK_BYTES), b"")


def _first_invalid_line(file: BinaryIO, codec: str) -> int | None:
    decoder = codecs.getincrementaldecoder(codec)()
    file.seek(0)
    read = 0
    while True:
        block = file.read(BLOCK_BYTES)
        read += len(block)
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return 1 + _line_ends(file, read - len(error.object) + error.start, codec)
        if not block:
            return None


def _line_ends(file: BinaryIO, size: int, codec: str) -> int:
    """How many lines end in the first `size` bytes."""
    file.seek(0)
    blocks = (file.read(min(BLOCK_BYTES, size - at)) for at in range(0, size, BLOCK_BYTES))
    if not codec.startswith(UTF16):
        return count_line_ends(blocks)
    decoder = codecs.getincrementaldecoder(codec)("ignore")
    return count_line_ends(decoder.decode(block).encode() for block in blocks)
