"""Datasets over HTTP: submit, read, list, and the files of one. `api.services.datasets` does it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import BaseUrl, DatasetsWriter, JobsReader, RequestId, State
from api.headers import IdempotencyKeyHeader, with_etag
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.datasets import DATASET, FILE, Dataset, DatasetFile
from api.schemas import example
from api.services import datasets, deletion
from api.services.datasets import DatasetRequest

router = APIRouter(tags=["datasets"])

PATH = "/v1/datasets"
MAX_FILES = 1000

EXAMPLES = {
    "all": {"summary": "The minimum", "value": {"batch": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081"}},
    "splits": {
        "summary": "Every field",
        "value": {
            "batches": ["019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081"],
            "where": "status = 'stored' and steps >= 20 and meta.kind in ('cat', 'dog')",
            "layout": "parquet",
            "splits": {"test": 0.1, "validation": 0.05},
            "shard_images": 1000,
            "shard_size": 500_000_000,
            "image_format": "webp",
            "resize": 256,
            "quality": 90,
        },
    },
}


class DatasetPage(BaseModel):
    model_config = example({"items": [DATASET], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Dataset]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class FilePage(BaseModel):
    model_config = example({"items": [FILE], "next_cursor": "8192"})

    items: list[DatasetFile]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class DatasetPaging(Paging):
    batch: UUID | None = Field(None, description="Only datasets that this batch is in.")


class FilePaging(BaseModel):
    """Which page, and how long."""

    cursor: str = Field("0", pattern=r"^[0-9]{1,15}$", description="`next_cursor` of the page before.")
    limit: int = Field(200, ge=1, le=MAX_FILES)


@router.post(PATH, operation_id="submitDataset", summary="Export batches as a dataset", status_code=201)
def submit_dataset(
    new: Annotated[DatasetRequest, Body(openapi_examples=EXAMPLES)],
    caller: DatasetsWriter,
    state: State,
    base_url: BaseUrl,
    request_id: RequestId,
    response: Response,
    idempotency_key: IdempotencyKeyHeader = None,
) -> Dataset:
    """Answered at once: a control worker writes it, shard by shard. While a batch of it runs, each shard is written
    once all its images have ended; the dataset is `ready` soon after its batches have ended.
    """
    dataset, is_new = datasets.submit(state, caller, new, idempotency_key, request_id)
    response.headers["Location"] = f"{base_url}v1/datasets/{dataset.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return dataset


@router.get(PATH, operation_id="listDatasets", summary="List datasets, newest first")
def list_datasets(
    paging: Annotated[DatasetPaging, Query()], caller: JobsReader, state: State, request: Request, response: Response
) -> DatasetPage:
    page, cursor = datasets.get_page(state, caller, paging, paging.batch)
    response.headers.update(next_link(request, cursor))
    return DatasetPage(items=page, next_cursor=cursor)


@router.get(
    "/v1/datasets/{dataset_id}",
    operation_id="readDataset",
    summary="Read a dataset",
    response_model=Dataset,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_dataset(dataset_id: UUID, caller: JobsReader, state: State, request: Request) -> Response:
    return with_etag(request, datasets.get(state, caller, dataset_id))


@router.get("/v1/datasets/{dataset_id}/files", operation_id="listFiles", summary="List the files of a dataset")
def list_files(
    dataset_id: UUID,
    paging: Annotated[FilePaging, Query()],
    caller: JobsReader,
    state: State,
    request: Request,
    response: Response,
) -> FilePage:
    """Links to all its files, `SHA256SUMS` first; 409 until the dataset is ready."""
    files, further = datasets.get_files(state, caller, dataset_id, int(paging.cursor), paging.limit)
    cursor = None if further is None else str(further)
    response.headers.update(next_link(request, cursor))
    return FilePage(items=files, next_cursor=cursor)


@router.delete(
    "/v1/datasets/{dataset_id}", operation_id="deleteDataset", summary="Delete a dataset and its files", status_code=204
)
def delete_dataset(dataset_id: UUID, caller: DatasetsWriter, state: State) -> None:
    """Hidden at once; the files are gone within a minute. The images that it was made of stay.
    A `GET` of its id is answered with 410 and the tombstone: when it was deleted, and by which key. To delete it again
    changes nothing.
    """
    deletion.delete_dataset(state, caller, dataset_id)
