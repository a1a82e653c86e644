"""A dataset as its exporter holds it for a turn, and a step of its progress. Pure values: no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from common.datasets.layout import DatasetPlan


@dataclass(frozen=True)
class Dataset:
    """What an exporter needs of a dataset. The next shard is number `shard` of split number `split`.

    `open_before`: how many turns before this one are open.
    """

    id: UUID
    batch_ids: Sequence[UUID]
    retries: Sequence[UUID]  # of the batches; their images replace those that failed
    plan: DatasetPlan
    split: int
    shard: int
    source: int  # the number of the batch where the next shard starts
    position: int  # of the prompt there
    shards: int
    images: int
    owner_id: UUID
    open_before: int

    @property
    def batch_id(self) -> UUID:
        """Of the batch where the next shard starts."""
        return self.batch_ids[self.source]

    @property
    def plan_digest(self) -> str:
        return self.plan.digest(*self.batch_ids)

    @property
    def split_name(self) -> str | None:
        """None when every split is written."""
        names = self.plan.split_names
        return names[self.split] if self.split < len(names) else None


@dataclass(frozen=True)
class Step:
    """What one step has written, and where the next one starts: in the same split, or in the next."""

    position: int
    ends_split: bool
    images: int
    pictures: int  # images with a file
    source: int = 0  # the batch of the position


def dataset_of(row: Row[Any]) -> Dataset:
    return Dataset(
        id=row.id,
        batch_ids=[row.batch_id, *row.more_batches],
        retries=row.retries,
        plan=DatasetPlan.model_validate(row.plan),
        split=row.split,
        shard=row.shard,
        source=row.source,
        position=row.position,
        shards=row.shards,
        images=row.images,
        owner_id=row.owner_id,
        open_before=row.open_turns - 1,
    )
