"""A dataset and its files. Each file's link leads to the image store, and is signed when somebody follows it."""

import re
from functools import lru_cache
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from api.dashboard.sessions import TheVisitor
from api.dashboard.view import Read, view
from api.deps import AppState, State
from api.queries.datasets import Dataset, DatasetFile, find_dataset, find_files
from common.accounts.tenants import Caller
from common.db import transaction
from common.enums import DatasetState
from common.errors import NotFound
from common.storage import Storage, dataset_key

router = APIRouter()

SHOWN = 200
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")  # as all files of a dataset have


@view(router, "/datasets/{dataset_id}", "dataset.html")
def show_dataset(dataset_id: UUID, visitor: TheVisitor, farm: State) -> Read:
    def look() -> dict[str, Any]:
        dataset = find(farm, visitor.caller, dataset_id)
        is_ready = dataset.state == DatasetState.READY
        return {
            "dataset": dataset,
            "files": files_of(farm.storage, dataset_id, dataset.digest or "") if is_ready else (),
        }

    return look


@router.get("/datasets/{dataset_id}/files/{path:path}")
def get_file(dataset_id: UUID, path: str, visitor: TheVisitor, farm: State) -> Response:
    dataset = find(farm, visitor.caller, dataset_id)
    if dataset.state != DatasetState.READY or not PATH.fullmatch(path):
        raise NotFound(f"Dataset {dataset_id} has no file {path}.")
    name = path.rpartition("/")[2]
    return RedirectResponse(farm.storage.link(dataset_key(dataset_id, path), save_as=name), 302)


def find(farm: AppState, caller: Caller, dataset_id: UUID) -> Dataset:
    with transaction(farm.autocommit) as connection:
        return find_dataset(connection, caller.tenant_id, dataset_id)


@lru_cache(maxsize=32)
def files_of(storage: Storage, dataset_id: UUID, digest: str) -> tuple[DatasetFile, ...]:
    """The first of them. What is ready never changes again, so they are read once."""
    ready = Dataset.model_construct(id=dataset_id, digest=digest)
    return tuple(find_files(storage, ready, 0, SHOWN)[0])
