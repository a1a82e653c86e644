"""What a .gz or .zst file contains. Runs in the child process only."""

import gzip
import importlib
import shutil
import sys
import zlib
from typing import BinaryIO

from common.errors import Invalid
from common.prompt_files import sentence

zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
BLOCK_BYTES = 1_000_000


def convert(source: BinaryIO, target: BinaryIO, kind: str, codec: str) -> None:
    """Raises Invalid for a damaged or truncated file."""
    try:
        with gzip.open(source) if kind == ".gz" else zstd.open(source) as opened:
            shutil.copyfileobj(opened, target, BLOCK_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
        raise Invalid(sentence("compressed_unreadable", suffix=kind, reason=str(error)[:200])) from None
