"""Datasets as their tenant sees them, and the files of one that is ready. Reads only; `common.datasets.lifecycle`
changes them.

A page of files is a part of the dataset's SHA256SUMS, so it costs the same for ten files and for a million.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row, text

from api import sentence
from api.schemas import example
from common.datasets.layout import SUMS, DatasetPlan, ImageFormat, Layout
from common.enums import DatasetState
from common.errors import NotFound
from common.schema import columns_of, datasets
from common.storage import Storage, dataset_key

DATASET: dict[str, Any] = {
    "id": "019c2f6e-7d60-7d10-8a2b-3c4d5e6f7a8b",
    "batch_id": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081",
    "batches": ["019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081"],
    "retries": [],
    "state": "writing",
    "layout": "webdataset",
    "splits": {"test": 0.1, "train": 0.9},
    "where": None,
    "shard_images": None,
    "shard_size": None,
    "image_format": None,
    "quality": None,
    "resize": None,
    "plan": "8d7c0a8bb0a5b2c5ab9f0f3b1b6d3a1f6e5d4c3b2a190817263544536271809f",
    "images": {"total": 100000, "written": 31200, "stored": 29988},
    "shards": 3,
    "files": None,
    "bytes": None,
    "digest": None,
    "error": None,
    "created_at": "2026-11-22T09:00:00Z",
    "begun_at": "2026-11-22T09:00:01Z",
    "finished_at": None,
    "stale": False,
}
FILE: dict[str, Any] = {
    "path": "data/train-00000.tar",
    "sha256": "5f0c3d6d8f1e0a7a4b2f8f6f4b1d9f3c0e6a7b8c9d0e1f2a3b4c5d6e7f8091a2",
    "url": "http://127.0.0.1:9000/huafang/datasets/019c2f6e-7d60-7d10-8a2b-3c4d5e6f7a8b/data/train-00000.tar?X-Amz-…",
}


class DatasetImages(BaseModel):
    """The images of its batches, as far as it is written."""

    total: int | None = Field(
        description="Null until all jobs of the batches exist, and with `where` until it is written."
    )
    written: int
    stored: int = Field(description="In finished shards, with a picture.")


class DatasetError(BaseModel):
    code: str = Field(examples=["unwritable"])
    message: str = Field(examples=["None of the 10 images of its batch is stored."])


class Dataset(BaseModel):
    """The pictures of batches as files to download."""

    model_config = example(DATASET)

    id: UUID
    batch_id: UUID = Field(description="The first batch.")
    batches: list[UUID] = Field(description="Whose rows follow one another.")
    retries: list[UUID] = Field(description="Of the batches: failed images that these stored are in it too.")
    state: DatasetState
    layout: Layout
    splits: dict[str, float] = Field(description="Shares of the prompts.")
    where: str | None
    shard_images: int | None
    shard_size: int | None
    image_format: ImageFormat | None
    quality: int | None
    resize: int | None
    plan: str = Field(description="Equal for equal requests about the same batches.")
    images: DatasetImages
    shards: int = Field(description="Finished ones.")
    files: int | None = Field(description="Once it is ready.")
    bytes: int | None = Field(description="Of all its files, once it is ready.")
    digest: str | None = Field(description="The sha256 of its SHA256SUMS, and so of every byte of it.")
    error: DatasetError | None = Field(description="Why it cannot be written.")
    created_at: datetime
    begun_at: datetime | None
    finished_at: datetime | None
    stale: bool = Field(description="Whether a picture that it may show was deleted since.")


class DatasetFile(BaseModel):
    """A file of a dataset, and a link to it that is good for a while."""

    model_config = example(FILE)

    path: str
    sha256: str
    url: str


def find_dataset(connection: Connection, tenant_id: UUID, dataset_id: UUID) -> Dataset:
    """Raises NotFound when the tenant has no such dataset."""
    row = connection.execute(READ_DATASET, {"tenant": tenant_id, "dataset": dataset_id}).first()
    if row is None:
        raise NotFound(sentence("dataset_not_found", dataset=dataset_id))
    return _dataset(row)


def find_datasets(
    connection: Connection, tenant_id: UUID, batch_id: UUID | None, before: UUID | None, limit: int
) -> list[Dataset]:
    """A page of datasets, newest first: those that are older than the one of `before`."""
    page = {"tenant": tenant_id, "batch": batch_id, "before": before or UUID(int=2**128 - 1), "limit": limit}
    return [_dataset(row) for row in connection.execute(READ_PAGE, page)]


def find_files(storage: Storage, dataset: Dataset, offset: int, limit: int) -> tuple[list[DatasetFile], int | None]:
    """Files of a dataset that is ready, and the offset of the next page; SHA256SUMS itself is the first file."""
    files = list[DatasetFile]()

    def add(path: str, digest: str) -> None:
        url = storage.link(dataset_key(dataset.id, path))
        files.append(DatasetFile(path=path, sha256=digest, url=url))

    if offset == 0 and dataset.digest:
        add(SUMS, dataset.digest)
    with storage.open(dataset_key(dataset.id, SUMS), offset) as blocks:
        for line in _lines(blocks):
            if len(files) == limit:
                return files, offset
            digest, _, path = line.decode().rstrip("\n").partition("  ")
            add(path, digest)
            offset += len(line)
    return files, None


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in whole)


def _dataset(row: Row[Any]) -> Dataset:
    plan = DatasetPlan.model_validate(row.plan, extra="ignore")
    batch_ids = [row.batch_id, *row.more_batches]
    total = row.total if plan.where is None else row.images if row.digest else None
    return Dataset(
        id=row.id,
        batch_id=row.batch_id,
        batches=batch_ids,
        retries=row.retries,
        state=row.state,
        **{name: getattr(plan, name) for name in DatasetPlan.model_fields},
        plan=plan.digest(*batch_ids),
        images=DatasetImages(total=total, written=row.images + row.written, stored=row.pictures),
        shards=row.shards,
        files=row.files,
        bytes=row.bytes,
        digest=row.digest,
        error=DatasetError(code=row.error_code, message=row.error_message) if row.error_code else None,
        created_at=row.created_at,
        begun_at=row.begun_at,
        finished_at=row.finished_at,
        stale=row.stale_at is not None,
    )


# Datasets, with the number of images of their batches once that is final.
READ = f"""
    SELECT {columns_of(datasets)}, expected.total
    FROM datasets CROSS JOIN LATERAL (
        SELECT CASE WHEN bool_and(expanded_at IS NOT NULL OR finished_at IS NOT NULL)
                    THEN sum(images)::bigint END AS total
        FROM batches WHERE batches.id = ANY(datasets.batch_id || datasets.more_batches)) AS expected
    WHERE datasets.tenant_id = :tenant AND
"""
# One dataset of a tenant.
READ_DATASET = text(f"{READ} datasets.id = :dataset")
# A page of a tenant's datasets, newest first, of one batch or of all.
READ_PAGE = text(f"""
    {READ} datasets.id < :before
        AND (cast(:batch AS uuid) IS NULL OR batch_id = :batch OR more_batches @> ARRAY[cast(:batch AS uuid)])
    ORDER BY datasets.id DESC LIMIT :limit
""")
