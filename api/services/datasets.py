"""What callers do with datasets: submit, read, list, and list the files of one. A control worker writes them."""

from typing import Any
from uuid import UUID

from pydantic import Field, ValidationInfo, field_validator

from api import sentence
from api.deps import AppState
from api.headers import idempotency_key
from api.pagination import Paging
from api.queries.datasets import Dataset, DatasetFile, find_dataset, find_datasets, find_files
from common.accounts import admission, audit
from common.accounts.audit import Action
from common.accounts.idempotency import submit_idempotent
from common.accounts.keys import Caller
from common.datasets import lifecycle
from common.datasets.layout import MAX_BATCHES, DatasetPlan
from common.db import transaction
from common.enums import DatasetState
from common.errors import Conflict
from common.log import log_event
from common.sentences import Sentence

ROUTE = "POST /v1/datasets"  # of an Idempotency-Key


class DatasetRequest(DatasetPlan):
    """What to export, and how."""

    batch: UUID | None = Field(None, description="The batch, where it is one.")
    batches: list[UUID] = Field(
        default=[],
        validate_default=True,
        max_length=MAX_BATCHES,
        description="In place of `batch`: batches whose rows follow one another.",
    )

    @field_validator("batches")
    @classmethod
    def _need_a_batch(cls, batches: list[UUID], info: ValidationInfo) -> list[UUID]:
        if "batch" in info.data and (info.data["batch"] is None) == (not batches):
            raise ValueError(sentence("batch_or_batches"))
        if twice := [one for at, one in enumerate(batches) if one in batches[:at]]:
            raise ValueError(sentence("batch_twice", batch=twice[0]))
        return batches

    @property
    def batch_ids(self) -> list[UUID]:
        return [self.batch] if self.batch else self.batches

    @property
    def plan(self) -> DatasetPlan:
        return DatasetPlan(**{name: getattr(self, name) for name in DatasetPlan.model_fields})


def submit(
    state: AppState, caller: Caller, request: DatasetRequest, key: str | None, request_id: str
) -> tuple[Dataset, bool]:
    """The dataset of this request, and whether it is new. `key` is an Idempotency-Key.

    Raises NotFound, Conflict and LimitReached.
    """
    ids = list(map(str, request.batch_ids))
    named: dict[str, Any] = {"batch": ids[0]} if len(ids) == 1 else {"batches": ids}
    once = idempotency_key(ROUTE, key, request.model_dump(mode="json", exclude_unset=True))

    def insert(dataset_id: UUID) -> None:
        admission.admit(connection, caller.tenant_id, state.limits_of(caller), uploads=1)
        lifecycle.submit(
            connection, caller.tenant_id, request.batch_ids, request.plan, request_id=request_id, dataset_id=dataset_id
        )
        audit.record(connection, caller, Action.EXPORT_DATASET, dataset_id, **named)

    with transaction(state.engine) as connection:
        dataset_id, is_new = submit_idempotent(connection, caller.tenant_id, once, insert)
    if is_new:
        state.broker.export(dataset_id)
        log_event(
            "dataset_submitted",
            dataset=dataset_id,
            batch=",".join(ids),
            tenant=caller.tenant_id,
            request=request_id,
        )
    return get(state, caller, dataset_id), is_new


def get(state: AppState, caller: Caller, dataset_id: UUID) -> Dataset:
    """Raises NotFound."""
    with transaction(state.autocommit) as connection:
        return find_dataset(connection, caller.tenant_id, dataset_id)


def get_page(
    state: AppState, caller: Caller, paging: Paging, batch_id: UUID | None = None
) -> tuple[list[Dataset], str | None]:
    """Datasets, newest first, and the cursor of the next page."""
    with transaction(state.autocommit) as connection:
        return paging.cut(find_datasets(connection, caller.tenant_id, batch_id, paging.before, paging.limit + 1))


def get_files(
    state: AppState, caller: Caller, dataset_id: UUID, offset: int, limit: int
) -> tuple[list[DatasetFile], int | None]:
    """Files of a dataset, and the offset of the next ones. Raises NotFound, or Conflict until the dataset is ready."""
    dataset = get(state, caller, dataset_id)
    if dataset.state != DatasetState.READY:
        raise Conflict(_not_ready(dataset))
    return find_files(state.storage, dataset, offset, limit)


def _not_ready(dataset: Dataset) -> Sentence:
    if dataset.error:
        return sentence("dataset_failed", dataset=dataset.id, state=dataset.state, reason=dataset.error.message)
    return sentence("dataset_not_ready", dataset=dataset.id, state=dataset.state)
