"""Where files of prompts are read from: local files and globs, stdin, s3://, https:// and hf://. Knows no farm.

Buckets and hubs are asked with the credentials that their own tools use: those of the AWS SDK, of `hf auth login`.
"""

import glob
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from cli import sentence
from cli.errors import NOT_FOUND, USAGE, Failure

STDIN = "-"
WILD = "*?["
BLOCK_BYTES = 1_000_000
TIMEOUT_S = 60.0


def find_sources(names: Iterable[str]) -> list[str]:
    """The sources that these names and patterns mean, each once. Raises Failure for one that means none."""
    found: dict[str, None] = {}
    for name in names:
        here = _expand(name)
        if not here:
            raise Failure(sentence("source_missing", source=name), USAGE)
        found.update(dict.fromkeys(here))
    return list(found)


def is_upload(source: str) -> bool:
    """Whether a source is the id of an upload."""
    try:
        return bool(uuid.UUID(source))
    except ValueError:
        return False


def name_of(source: str) -> str:
    """The name of the file, whose suffix says its format."""
    return "" if source == STDIN else source.partition("?")[0].rpartition("/")[2]


@contextmanager
def open_source(source: str) -> Iterator[BinaryIO]:
    """The bytes of a source, in a file that can be read again: an upload may be sent again. Raises Failure."""
    with ExitStack() as stack:
        if is_local(source):
            file = stack.enter_context(_open_local(source))
            if file.seekable():
                yield file
                return
        copy = stack.enter_context(tempfile.TemporaryFile())
        with _explained(source), file if is_local(source) else _opened(source) as stream:
            shutil.copyfileobj(stream, copy, BLOCK_BYTES)
        yield copy


def is_local(source: str) -> bool:
    return source != STDIN and "://" not in source


def _open_local(source: str) -> BinaryIO:
    try:
        return open(source, "rb")
    except OSError as error:
        raise Failure(sentence("source_unreadable", source=source, reason=error.strerror), USAGE) from None


def _expand(name: str) -> list[str]:
    if name == STDIN or is_upload(name):
        return [name]
    if name.startswith("s3://"):
        return _list_bucket(name) if any(mark in name for mark in WILD) else [name]
    if name.startswith("hf://"):
        return _list_hub(name) if any(mark in name for mark in WILD) else [name]
    if "://" in name:
        return [name]
    if Path(name).exists():
        return [name]
    return sorted(path for path in glob.glob(name, recursive=True) if not Path(path).is_dir())


@contextmanager
def _opened(source: str) -> Iterator[Any]:
    """A stream of the bytes of stdin or of a source somewhere else."""
    if source == STDIN:
        yield sys.stdin.buffer
    elif source.startswith("s3://"):
        bucket, _, key = source.removeprefix("s3://").partition("/")
        yield _bucket().get_object(Bucket=bucket, Key=key)["Body"]
    elif source.startswith("hf://"):
        with _hub().open(source, "rb") as file:
            yield file
    elif source.startswith(("https://", "http://")):
        with httpx.stream("GET", source, follow_redirects=True, timeout=TIMEOUT_S) as answer:
            answer.raise_for_status()
            yield Blocks(answer.iter_bytes(BLOCK_BYTES))
    else:
        raise Failure(sentence("source_unknown", source=source), USAGE)


class Blocks:
    """A stream of blocks, each read whole."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def read(self, size: int) -> bytes:
        return next(self._blocks, b"")


def _list_bucket(pattern: str) -> list[str]:
    bucket, _, wanted = pattern.removeprefix("s3://").partition("/")
    prefix = wanted[: min(wanted.find(mark) for mark in WILD if mark in wanted)]
    with _explained(pattern):
        pages = _bucket().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
    return [f"s3://{bucket}/{key}" for key in keys if fnmatchcase(key, wanted)]


def _list_hub(pattern: str) -> list[str]:
    with _explained(pattern):
        return [f"hf://{path}" for path in _hub().glob(pattern)]


def _bucket() -> Any:
    import boto3  # takes a third of a second

    return boto3.client("s3")


def _hub() -> Any:
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise Failure(sentence("hub_missing")) from None
    return HfFileSystem()


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Raises Failure for what a bucket, a hub or a host answers."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except FileNotFoundError:
        raise Failure(sentence("source_missing", source=source), NOT_FOUND) from None
    except (BotoCoreError, ClientError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Failure(sentence("source_unreadable", source=source, reason=reason)) from None
