"""A dataset and its files. The link of a file redirects to a signed URL of the image store."""

import re
import shlex
from functools import lru_cache
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from starlette.responses import RedirectResponse

from api.dashboard import sentence
from api.dashboard.sessions import CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import AppState, State
from api.queries.datasets import Dataset, DatasetFile, find_dataset, find_files
from common.accounts.keys import Caller
from common.datasets.layout import REMAINDER, DatasetPlan
from common.db import transaction
from common.enums import DatasetState
from common.errors import NotFound
from common.storage import Storage, dataset_key

router = APIRouter()

SHOWN_FILES = 200
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*+(?:/[A-Za-z0-9_][A-Za-z0-9._-]*+)*+")  # the file names of datasets


@view(router, "/datasets/{dataset_id}", "dataset.html")
def show_dataset(dataset_id: UUID, visitor: CurrentVisitor, state: State) -> Read:
    def read() -> dict[str, Any]:
        dataset = _find(state, visitor.caller, dataset_id)
        is_ready = dataset.state == DatasetState.READY
        files = first_files(state.storage, dataset_id, dataset.digest or "") if is_ready else ()
        return {"dataset": dataset, "files": files, "command": export_command(dataset)}

    return read


@router.get("/datasets/{dataset_id}/files/{path:path}")
def get_file(dataset_id: UUID, path: str, visitor: CurrentVisitor, state: State) -> Response:
    dataset = _find(state, visitor.caller, dataset_id)
    if dataset.state != DatasetState.READY or not PATH.fullmatch(path):
        raise NotFound(sentence("no_dataset_file", dataset=dataset_id, path=path))
    name = path.rpartition("/")[2]
    return RedirectResponse(state.storage.link(dataset_key(dataset_id, path), save_as=name), 302)


def _find(state: AppState, caller: Caller, dataset_id: UUID) -> Dataset:
    with transaction(state.autocommit) as connection:
        return find_dataset(connection, caller.tenant_id, dataset_id)


def export_command(dataset: Dataset) -> str:
    """What downloads this dataset, and no other one of its batches."""
    chosen = {name: getattr(dataset, name) for name in DatasetPlan.model_fields if name not in ("splits", "layout")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items() if value is not None]
    splits = [f"--split={name}={share:g}" for name, share in dataset.splits.items() if name != REMAINDER]
    batches = map(str, dataset.batches)
    layout = f"--layout={dataset.layout}"
    return shlex.join(["huafang", "dataset", "export", *batches, layout, *splits, *options, "--out=DIR"])


@lru_cache(maxsize=32)
def first_files(storage: Storage, dataset_id: UUID, digest: str) -> tuple[DatasetFile, ...]:
    """The first files of a ready dataset. Cached: a ready dataset never changes."""
    ready = Dataset.model_construct(id=dataset_id, digest=digest)
    return tuple(find_files(storage, ready, 0, SHOWN_FILES)[0])
