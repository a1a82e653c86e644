"""Prompts in sheets, as they come in: whether a Parquet file is one, and what a CSV file is written in.

Nothing is guessed: a CSV file is what its client says, or else UTF-8 if all of it is, or else GB18030 if all of it is,
which Excel writes on a Chinese Windows (GBK and GB2312 are parts of it).
"""

import codecs
import os
from typing import BinaryIO

from common.errors import Invalid
from common.prompt_files.reader import UTF8

GB18030 = "gb18030"
CHINESE = ("gb18030", "gbk", "gb2312")  # as Python calls them; the first one has all that the others have
CALLED = {UTF8: "UTF-8", GB18030: "GB18030"}
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLOCK_BYTES = 1_000_000
MARK = b"PAR1"  # at both ends of a Parquet file


def encoding_of(file: BinaryIO, charset: str | None) -> str:
    """What all of a CSV file is written in. Raises Invalid, which says what was tried."""
    file.seek(0)
    if file.read(2) in UTF16:
        raise Invalid("The file is UTF-16; save it as UTF-8.")
    tried = (_known(charset),) if charset else (UTF8, GB18030)
    wrong = dict[str, int]()
    for encoding in tried:
        if (line := _first_wrong_line(file, encoding)) is None:
            return encoding
        wrong[encoding] = line
    reasons = " and ".join(f"not {CALLED[encoding]} (line {line} is not)" for encoding, line in wrong.items())
    said = ", as its charset says" if charset else ""
    raise Invalid(f"The file is {reasons}{said}; save it as UTF-8.")


def check_parquet(file: BinaryIO) -> None:
    """Raises Invalid for what cannot be one, or broke off."""
    ends = []
    for offset, whence in ((0, os.SEEK_SET), (-len(MARK), os.SEEK_END)):
        try:
            file.seek(offset, whence)
        except OSError:
            break
        ends.append(file.read(len(MARK)))
    if ends != [MARK, MARK]:
        raise Invalid("The file is not Parquet, or not all of it.")


def _known(charset: str) -> str:
    try:
        name = codecs.lookup(charset).name
    except (LookupError, ValueError):
        name = ""
    if name in CHINESE:
        return GB18030
    if name in (UTF8, "utf-8-sig", "ascii"):
        return UTF8
    raise Invalid(f"charset must be {' or '.join(CALLED.values())}.")


def _first_wrong_line(file: BinaryIO, encoding: str) -> int | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    file.seek(0)
    line = 1
    while True:
        block = file.read(BLOCK_BYTES)
        try:
            decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            return line + error.object[: error.start].count(b"\n")
        if not block:
            return None
        line += block.count(b"\n")
