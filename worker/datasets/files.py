"""The files of one dataset, under its prefix in the image store. Knows nothing of what is in them."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from uuid import UUID

from common.storage import Storage, dataset_key, sha256

MEDIA_TYPES = {
    ".tar": "application/x-tar",
    ".parquet": "application/vnd.apache.parquet",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown; charset=utf-8",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


@dataclass(frozen=True)
class File:
    path: str
    sha256: str
    bytes: int


class DatasetFiles:
    def __init__(self, storage: Storage, dataset_id: UUID) -> None:
        self._storage = storage
        self._dataset_id = dataset_id

    def put(self, path: str, data: bytes) -> File:
        self._storage.put(self._key(path), data, _media_type(path))
        return File(path, sha256(data), len(data))

    def put_text(self, path: str, text: str) -> File:
        return self.put(path, text.encode())

    def put_json(self, path: str, value: Any) -> File:
        return self.put_text(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n")

    def put_blocks(self, path: str, blocks: Iterable[bytes]) -> File:
        """Store a file of any size, block by block."""
        digest, size = hashlib.sha256(), 0

        def measured() -> Iterator[bytes]:
            nonlocal size
            for block in blocks:
                digest.update(block)
                size += len(block)
                yield block

        self._storage.put_blocks(self._key(path), measured(), _media_type(path))
        return File(path, digest.hexdigest(), size)

    def get(self, path: str) -> bytes:
        """Raises NotFound when there is no such file."""
        return self._storage.get(self._key(path))

    def _key(self, path: str) -> str:
        return dataset_key(self._dataset_id, path)


def _media_type(path: str) -> str:
    return MEDIA_TYPES.get(PurePath(path).suffix, "text/plain; charset=utf-8")
