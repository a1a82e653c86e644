"""The formats of files of prompts: their names, suffixes and media types, and how the first bytes tell them. Pure."""

import json
import re
from typing import NamedTuple

from common.prompt_files.columns import FIELDS, field_of

UTF8, GB18030, UTF16 = "utf-8", "gb18030", "utf-16"
ENCODINGS = {UTF8: "UTF-8", GB18030: "GB18030", UTF16: "UTF-16"}


class Format(NamedTuple):
    """Of several suffixes or media types, the first is the usual one."""

    suffixes: tuple[str, ...]
    media_types: tuple[str, ...]


FORMATS = {
    "txt": Format((".txt", ".text"), ("text/plain",)),
    "jsonl": Format((".jsonl", ".ndjson"), ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")),
    "json": Format((".json",), ("application/json",)),
    "csv": Format((".csv",), ("text/csv", "application/csv")),
    "tsv": Format((".tsv", ".tab"), ("text/tab-separated-values",)),
    "parquet": Format((".parquet", ".pq"), ("application/vnd.apache.parquet",)),
    "xlsx": Format((".xlsx", ".xlsm"), ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",)),
}
COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}  # and what such a file begins with
MEDIA_TYPES = {media_type: name for name, format in FORMATS.items() for media_type in format.media_types}
UNKNOWN_TYPES = ("application/octet-stream", "application/gzip", "application/zstd")  # of files told by their bytes
BINARY = {"parquet": b"PAR1", "xlsx": b"PK\x03\x04"}
TEXT = ("txt", "jsonl", "json", "csv", "tsv")
CONVERTED = ("json", "parquet", "xlsx")  # when they are uploaded; the others are stored as they are, but for UTF-16
TABLE = "table"  # a converted Parquet file, as it is stored; "parquet" is one that older code stored as it was
TEXT_TABLES = ("csv", "tsv")
ROWS = ("parquet", TABLE, "xlsx")
HEAD_BYTES = 64_000  # by which a file is told
BOM = "\ufeff"


def format_of(name: str) -> str | None:
    """The format that the name of a file says, which may be compressed; None if it says none."""
    name = name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return next((format for format, one in FORMATS.items() if name.endswith(one.suffixes)), None)


def compression_of(head: bytes) -> str | None:
    """The suffix of the compression of a file that begins so; None for none."""
    return next((suffix for suffix, magic in COMPRESSED.items() if head.startswith(magic)), None)


def binary_format_of(head: bytes) -> str | None:
    """The format of a file that begins so, if it is no text."""
    return next((format for format, magic in BINARY.items() if head.startswith(magic)), None)


def text_format_of(head: str, named: str | None) -> str:
    """The format of a file of text that begins so. `named` is what its name or its media type says; it decides between
    formats that begin alike.
    """
    text = head.removeprefix(BOM).lstrip()
    if named in TEXT_TABLES:
        return named
    if (text.startswith("[") and named in ("json", "jsonl")) or re.match(r'\[\s*(\{\s*"|\]\s*$)', text):
        return "json"
    if text.startswith("{") and (named in ("json", "jsonl") or re.match(r'\{\s*["}]', text)):
        return _format_of_objects(text, named)
    if named in FORMATS and named in TEXT:
        return named
    return "csv" if _has_columns(text) else "txt"


def _format_of_objects(text: str, named: str | None) -> str:
    """JSON Lines, or an object on several lines; a prompt of .txt may begin with a brace too."""
    first, _, rest = text.partition("\n")
    try:
        json.loads(first)
        return "jsonl"
    except (ValueError, RecursionError):
        pass
    if not rest or rest.lstrip().startswith("{"):
        return "txt" if named == "txt" else "jsonl"
    return "json"


def _has_columns(text: str) -> bool:
    """Whether the first line names the prompt and another field."""
    line = re.split(r"[\r\n]", text.removeprefix("sep=").lstrip(",;\t\r\n"), maxsplit=1)[0]
    names = [field_of(name.strip(' "')) for name in re.split("[,;\t]", line)]
    return "prompt" in names and sum(name in FIELDS for name in names) > 1


def shown_format(stored: str) -> str:
    """What people call the format in which prompts are stored."""
    return "parquet" if stored == TABLE else stored
