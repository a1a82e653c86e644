"""Datasets over HTTP: ask for one, look, list, get the files.

`common.datasets.lifecycle` does, `api.queries.datasets` shows it.

Nothing here reads a picture: a control worker writes what was asked for, as far as the batch has come.
"""

import hashlib
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import AppState, BaseUrl, DatasetsWriter, JobsReader, RequestId, State
from api.headers import IdempotencyKey, with_etag
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.datasets import DATASET, FILE, Dataset, DatasetFile, find_dataset, find_datasets, find_files
from api.schemas import example
from common.accounts import audit
from common.accounts.audit import Action
from common.accounts.tenants import Caller
from common.datasets import lifecycle as datasets
from common.datasets.layout import DatasetPlan
from common.db import new_id, transaction
from common.enums import DatasetState
from common.errors import Conflict
from common.log import log_event
from common.queue import idempotency
from common.recipes.recipe import canonical_json

router = APIRouter(tags=["datasets"])

PATH = "/v1/datasets"
ROUTE = f"POST {PATH}"
MOST_FILES = 1000

EXAMPLES = {
    "all": {"summary": "The least", "value": {"batch": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081"}},
    "splits": {
        "summary": "All that one may say",
        "value": {
            "batch": "019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081",
            "layout": "parquet",
            "splits": {"test": 0.1, "validation": 0.05},
        },
    },
}


class DatasetDraft(DatasetPlan):
    """What to export, and how."""

    batch: UUID

    @property
    def plan(self) -> DatasetPlan:
        return DatasetPlan(layout=self.layout, splits=self.splits)


class DatasetPage(BaseModel):
    model_config = example({"items": [DATASET], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[Dataset]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class FilePage(BaseModel):
    model_config = example({"items": [FILE], "next_cursor": "8192"})

    items: list[DatasetFile]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


class DatasetPaging(Paging):
    batch: UUID | None = Field(None, description="Only datasets of this batch.")


class FilePaging(BaseModel):
    """Which page, and how long."""

    cursor: str = Field("0", pattern=r"^[0-9]{1,15}$", description="`next_cursor` of the page before.")
    limit: int = Field(200, ge=1, le=MOST_FILES)


@router.post(PATH, operation_id="submitDataset", summary="Export a batch", status_code=201)
def submit_dataset(
    draft: Annotated[DatasetDraft, Body(openapi_examples=EXAMPLES)],
    caller: DatasetsWriter,
    farm: State,
    base_url: BaseUrl,
    request_id: RequestId,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> Dataset:
    """Answered at once: a control worker writes it, shard after shard. A batch that still runs is followed: each shard
    is written as soon as all its images have ended, and the dataset is `ready` soon after the batch has ended.
    """
    dataset, is_new = submit(farm, caller, draft, idempotency_key, request_id)
    response.headers["Location"] = f"{base_url}v1/datasets/{dataset.id}"
    if not is_new:
        response.headers["Idempotency-Replayed"] = "true"
    return dataset


def submit(
    farm: AppState, caller: Caller, draft: DatasetDraft, idempotency_key: str | None, request_id: str
) -> tuple[Dataset, bool]:
    """The dataset of this draft, and whether it is new: committed first, then sent."""
    dataset_id = new_id()
    once = idempotency.IdempotencyKey(ROUTE, idempotency_key, fingerprint(draft)) if idempotency_key else None
    with transaction(farm.engine) as connection:
        earlier = idempotency.claim_key(connection, caller.tenant_id, once, dataset_id) if once else None
        if earlier is None:
            datasets.submit(
                connection,
                caller.tenant_id,
                draft.batch,
                draft.plan,
                request_id=request_id,
                dataset_id=dataset_id,
            )
            audit.record(connection, caller, Action.EXPORT_DATASET, dataset_id, batch=draft.batch)
    if earlier is None:
        farm.messages.export(dataset_id)
        log_event(
            "dataset_submitted", dataset=dataset_id, batch=draft.batch, tenant=caller.tenant_id, request=request_id
        )
    return look(farm, caller, earlier or dataset_id), earlier is None


def fingerprint(draft: DatasetDraft) -> str:
    return hashlib.sha256(canonical_json(draft.model_dump(mode="json")).encode()).hexdigest()


def look(farm: AppState, caller: Caller, dataset_id: UUID) -> Dataset:
    with transaction(farm.autocommit) as connection:
        return find_dataset(connection, caller.tenant_id, dataset_id)


@router.get(PATH, operation_id="listDatasets", summary="List datasets, newest first")
def list_datasets(
    paging: Annotated[DatasetPaging, Query()], caller: JobsReader, farm: State, request: Request, response: Response
) -> DatasetPage:
    with transaction(farm.autocommit) as connection:
        found = find_datasets(connection, caller.tenant_id, paging.batch, paging.before, paging.limit + 1)
    page, cursor = paging.cut(found)
    response.headers.update(next_link(request, cursor))
    return DatasetPage(items=page, next_cursor=cursor)


@router.get(
    "/v1/datasets/{dataset_id}",
    operation_id="readDataset",
    summary="Look at a dataset",
    response_model=Dataset,
    responses={304: {"description": "It is as `If-None-Match` says."}},
)
def read_dataset(dataset_id: UUID, caller: JobsReader, farm: State, request: Request) -> Response:
    return with_etag(request, look(farm, caller, dataset_id))


@router.get("/v1/datasets/{dataset_id}/files", operation_id="listFiles", summary="List the files of a dataset")
def list_files(
    dataset_id: UUID,
    paging: Annotated[FilePaging, Query()],
    caller: JobsReader,
    farm: State,
    request: Request,
    response: Response,
) -> FilePage:
    """Links to all its files, `SHA256SUMS` first, once it is ready; 409 before."""
    dataset = look(farm, caller, dataset_id)
    if dataset.state != DatasetState.READY:
        reason = f": {dataset.error.message}" if dataset.error else "; its files are listed once it is ready."
        raise Conflict(f"Dataset {dataset_id} is {dataset.state.value}{reason}")
    files, further = find_files(farm.storage, dataset, int(paging.cursor), paging.limit)
    cursor = None if further is None else str(further)
    response.headers.update(next_link(request, cursor))
    return FilePage(items=files, next_cursor=cursor)
