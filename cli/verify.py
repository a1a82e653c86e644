"""Verifying a dataset in a folder: every checksum, count and picture. Collects all problems.

Reads one shard at a time, so memory does not grow with the dataset. Needs pyarrow, so import this module late.
"""

import hashlib
import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cli import sentence
from cli.download import OnProgress, sha256_of
from cli.errors import NOT_FOUND, Failure
from common.datasets import layout
from common.datasets.layout import FOLDERS, MANIFEST, SUMS, Row

READ_ROWS = 100
UNREADABLE = (OSError, ValueError, KeyError, TypeError, SyntaxError, Warning, tarfile.TarError, pa.ArrowException)


class Verification:
    def __init__(self, folder: Path) -> None:
        """Raises Failure where the folder holds no complete dataset."""
        self.problems: list[str] = []
        self.files = self.rows = self.pictures = 0
        self._folder = folder
        try:
            self._manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            self._plan, self._layout = str(self._manifest["plan"]), self._manifest["layout"]
            self._shards, self._counts = dict(self._manifest["shards"]), dict(self._manifest["counts"])
            self._columns = layout.columns_of_manifest(self._manifest)
        except (OSError, ValueError, KeyError, TypeError):
            raise Failure(sentence("no_dataset", folder=folder, file=MANIFEST), NOT_FOUND) from None
        if not (folder / SUMS).is_file():
            raise Failure(sentence("dataset_incomplete", folder=folder, file=SUMS))

    def size(self) -> int:
        """Bytes to read."""
        return sum(file.stat().st_size for file in self._local_files())

    def run(self, on_progress: OnProgress = lambda size: None) -> None:
        """Check everything and fill `problems`."""
        self._check_sums(on_progress)
        for name, shard in self._shards.items():
            with self._collect_error(f"shard {name}"):
                self._check_shard(name, shard)
        found = {"rows": self.rows, "stored": self.pictures}
        for key, count in found.items():
            self._expect(f"{MANIFEST}: {key}", self._counts.get(key), count)

    # Files

    def _check_sums(self, on_progress: OnProgress) -> None:
        known = {SUMS}
        with (self._folder / SUMS).open(encoding="utf-8") as lines:
            for line in lines:
                digest, _, path = line.rstrip("\n").partition("  ")
                known.add(path)
                with self._collect_error(path):
                    self._check_sum(digest, path, on_progress)
        for file in self._local_files():
            if (path := file.relative_to(self._folder).as_posix()) not in known:
                self.problems.append(sentence("file_unknown", path=path))
        self.files = len(known)

    def _check_sum(self, digest: str, path: str, on_progress: OnProgress) -> None:
        file = self._folder / path
        if not file.is_file():
            self.problems.append(sentence("file_missing", path=path))
        elif sha256_of(file) != digest:
            self.problems.append(sentence("file_altered", path=path, sums=SUMS))
        if file.is_file():
            on_progress(file.stat().st_size)

    def _local_files(self) -> Iterator[Path]:
        for name in FOLDERS:
            yield from (file for file in (self._folder / name).rglob("*") if file.is_file())
        yield from (file for file in self._folder.iterdir() if file.name in layout.TOP_LEVEL_FILES)

    # Shards

    def _check_shard(self, name: str, shard: Row) -> None:
        written = json.loads((self._folder / layout.shard_manifest_path(name)).read_text(encoding="utf-8"))
        table = pq.read_table(self._folder / layout.metadata_path(name))
        types = {column: getattr(pa, kind)() for column, kind in self._columns.types.items()}
        self._expect(f"{name}: columns", types, dict(zip(table.schema.names, table.schema.types, strict=True)))
        rows = table.to_pylist()
        self._expect(f"{name}: plan", self._plan, written["plan"])
        self._expect(f"{name}: files", shard["files"], written["files"])
        self._expect(f"{name}: rows", (shard["rows"], written["rows"]), (len(rows), len(rows)))
        self._expect(f"{name}: statuses", written["statuses"], dict(Counter(row["status"] for row in rows)))
        recipes = layout.text_sha256("\n".join(row["key"] for row in rows))
        self._expect(f"{name}: recipes", written["recipes"], recipes)
        self._expect(f"{MANIFEST}: recipes of {name}", shard["recipes"], recipes)
        self.rows += len(rows)
        stored = {row["key"]: row for row in rows if row["status"] == "stored"}
        found = 0
        if stored:
            for row, data in self._samples(name):
                known = stored.pop(row["key"], None)
                found += 1
                with self._collect_error(f"{name}: {row['key']}"):
                    self._check(known, row, data)
        self._expect(f"{name}: pictures", written["pictures"], found)
        self.problems += [sentence("picture_missing", shard=name, key=key) for key in stored]
        self.pictures += found

    def _check(self, known: Row | None, row: Row, data: bytes) -> None:
        """Compare a sample of the data with its row of the metadata."""
        if known is None:
            self.problems.append(sentence("row_missing", key=row["key"]))
            return
        self._expect(f"{row['key']}: row", known, row)
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            self.problems.append(sentence("picture_altered", key=row["key"]))
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("error")
            picture.load()
            self._expect(f"{row['key']}: size", (known["width"], known["height"]), picture.size)

    def _samples(self, shard: str) -> Iterator[tuple[Row, bytes]]:
        path = self._folder / layout.data_path(self._layout, shard)
        readers = {
            "webdataset": self._read_webdataset,
            "parquet": self._read_parquet,
            "imagefolder": self._read_imagefolder,
        }
        return readers[self._layout](path)

    def _read_webdataset(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        """Three files per sample: picture, prompt, row."""
        with tarfile.open(path, "r:") as tar:
            sample: dict[str, bytes] = {}
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                sample[extension] = file.read() if file else b""
                if extension == "json":
                    row = json.loads(sample.pop("json"))
                    self._expect(f"{key}: prompt", row["prompt"], sample.pop("txt", b"").decode())
                    self._expect(f"{key}: key", key, row["key"])
                    yield self._columns.cells(row), sample.pop(layout.EXTENSIONS[row["format"]], b"")
                    sample = {}

    def _read_parquet(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(READ_ROWS):
                for row in batch.to_pylist():
                    yield row, row.pop("image")["bytes"]

    def _read_imagefolder(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row, (path.parent / row.pop("file_name")).read_bytes()

    # Problems

    def _expect(self, what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            self.problems.append(sentence("value_differs", what=what, found=_short(found), wanted=_short(wanted)))

    @contextmanager
    def _collect_error(self, what: str) -> Iterator[None]:
        """Add an error of reading to the problems."""
        try:
            yield
        except UNREADABLE as error:
            self.problems.append(sentence("unreadable", what=what, reason=error))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}…"
