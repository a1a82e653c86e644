"""Whether a dataset in a folder is whole: every checksum, every count, every picture. Says all that is wrong with it.

Shard after shard, so memory does not grow with the dataset. Needs pyarrow, so import it late.
"""

import hashlib
import io
import json
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cli.download import digest_of
from cli.shell import Failure
from common.datasets import layout
from common.datasets.layout import FOLDERS, MANIFEST, SUMS, Row

Tell = Callable[[int], None]
GROUP = 100
UNREADABLE = (OSError, ValueError, KeyError, TypeError, SyntaxError, Warning, tarfile.TarError, pa.ArrowException)


class Verification:
    def __init__(self, folder: Path) -> None:
        """Raises Failure when there is no dataset."""
        self.problems: list[str] = []
        self.files = self.rows = self.pictures = 0
        self._folder = folder
        try:
            self._manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            self._plan, self._layout = str(self._manifest["plan"]), self._manifest["layout"]
            self._shards, self._counts = dict(self._manifest["shards"]), dict(self._manifest["counts"])
        except (OSError, ValueError, KeyError, TypeError):
            raise Failure(f"{folder} holds no dataset: it has no {MANIFEST}.", 4) from None
        if not (folder / SUMS).is_file():
            raise Failure(f"{folder} has no {SUMS}: it is not whole. Export it again to go on with the download.")

    def size(self) -> int:
        """What there is to read, in bytes."""
        return sum(file.stat().st_size for file in self._there())

    def run(self, tell: Tell = lambda size: None) -> None:
        """Look at everything. `tell` hears how many more bytes are done with."""
        self._check_sums(tell)
        for name, shard in self._shards.items():
            with self._reading(f"shard {name}"):
                self._check_shard(name, shard)
        found = {"rows": self.rows, "stored": self.pictures}
        for key, count in found.items():
            self._expect(f"{MANIFEST}: {key}", self._counts.get(key), count)

    # Files

    def _check_sums(self, tell: Tell) -> None:
        known = {SUMS}
        with (self._folder / SUMS).open(encoding="utf-8") as lines:
            for line in lines:
                digest, _, path = line.rstrip("\n").partition("  ")
                known.add(path)
                with self._reading(path):
                    self._check_sum(digest, path, tell)
        for file in self._there():
            if (path := file.relative_to(self._folder).as_posix()) not in known:
                self.problems.append(f"{path}: it does not belong to the dataset.")
        self.files = len(known)

    def _check_sum(self, digest: str, path: str, tell: Tell) -> None:
        file = self._folder / path
        if not file.is_file():
            self.problems.append(f"{path}: it is missing.")
        elif digest_of(file) != digest:
            self.problems.append(f"{path}: its sha256 is not the one in {SUMS}.")
        if file.is_file():
            tell(file.stat().st_size)

    def _there(self) -> Iterator[Path]:
        for name in FOLDERS:
            yield from (file for file in (self._folder / name).rglob("*") if file.is_file())
        yield from (file for file in self._folder.iterdir() if file.name in layout.TOP_LEVEL_FILES)

    # Shards

    def _check_shard(self, name: str, shard: Row) -> None:
        mark = json.loads((self._folder / layout.shard_manifest_path(name)).read_text(encoding="utf-8"))
        rows = pq.read_table(self._folder / layout.metadata_path(name)).to_pylist()
        self._expect(f"{name}: plan", self._plan, mark["plan"])
        self._expect(f"{name}: files", shard["files"], mark["files"])
        self._expect(f"{name}: rows", (shard["rows"], mark["rows"]), (len(rows), len(rows)))
        self._expect(f"{name}: statuses", mark["statuses"], dict(Counter(row["status"] for row in rows)))
        recipes = layout.text_sha256("\n".join(row["key"] for row in rows))
        self._expect(f"{name}: recipes", mark["recipes"], recipes)
        self._expect(f"{MANIFEST}: recipes of {name}", shard["recipes"], recipes)
        self.rows += len(rows)
        stored = {row["key"]: row for row in rows if row["status"] == "stored"}
        found = 0
        if stored:
            for row, data in self._samples(name):
                known = stored.pop(row["key"], None)
                found += 1
                with self._reading(f"{name}: {row['key']}"):
                    self._check(known, row, data)
        self._expect(f"{name}: pictures", mark["pictures"], found)
        self.problems += [f"{name}: the picture {key} is missing." for key in stored]
        self.pictures += found

    def _check(self, known: Row | None, row: Row, data: bytes) -> None:
        """A sample as it lies in the data: its row and its picture."""
        if known is None:
            self.problems.append(f"{row['key']}: its metadata has no such picture.")
            return
        self._expect(f"{row['key']}: row", known, row)
        if hashlib.sha256(data).hexdigest() != known["sha256"]:
            self.problems.append(f"{row['key']}: its picture is not the one that was stored.")
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as picture:
            warnings.simplefilter("error")
            picture.load()
            self._expect(f"{row['key']}: size", (known["width"], known["height"]), picture.size)

    def _samples(self, shard: str) -> Iterator[tuple[Row, bytes]]:
        path = self._folder / layout.data_path(self._layout, shard)
        return {"webdataset": self._of_tar, "parquet": self._of_table, "imagefolder": self._of_folder}[self._layout](
            path
        )

    def _of_tar(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        """Three files a sample: picture, prompt, row."""
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
                    yield row, sample.pop(layout.EXTENSIONS[row["format"]], b"")
                    sample = {}

    def _of_table(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(GROUP):
                for row in batch.to_pylist():
                    yield row, row.pop("image")["bytes"]

    def _of_folder(self, path: Path) -> Iterator[tuple[Row, bytes]]:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield row, (path.parent / row.pop("file_name")).read_bytes()

    # What is wrong

    def _expect(self, what: str, wanted: Any, found: Any) -> None:
        if wanted != found:
            self.problems.append(f"{what}: {_short(found)}, where {_short(wanted)} was written.")

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """What cannot be read is one more problem."""
        try:
            yield
        except UNREADABLE as error:
            self.problems.append(f"{what}: it cannot be read ({error}).")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}…"
