"""The queue over HTTP: how many images wait and run on the whole farm."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.deps import State, Viewer
from api.schemas import example
from common.db import transaction
from common.enums import Tier
from common.queue.stats import read_backlog

router = APIRouter(tags=["farm"])


DEPTH = {"waiting": 1200, "running": 8, "oldest_s": 84.5, "images_per_minute": 96}


class Depth(BaseModel):
    """Numbers of images."""

    waiting: int
    running: int
    oldest_s: float | None = Field(description="Since the oldest waiting job was submitted.")
    images_per_minute: int = Field(description="Stored in the last minute.")


class LaneDepth(Depth):
    model: str
    tier: Tier


class Queue(Depth):
    model_config = example({**DEPTH, "by_model_and_tier": [{**DEPTH, "model": "zh-v0", "tier": "bulk"}]})

    by_model_and_tier: list[LaneDepth]


@router.get("/v1/queue", operation_id="readQueue", summary="Read how much waits and runs")
def read_queue(caller: Viewer, state: State) -> Queue:
    with transaction(state.autocommit) as connection:
        rows = read_backlog(connection)
    depths = [LaneDepth.model_validate(row, from_attributes=True) for row in rows]
    return Queue(
        waiting=sum(depth.waiting for depth in depths),
        running=sum(depth.running for depth in depths),
        oldest_s=max((depth.oldest_s for depth in depths if depth.oldest_s is not None), default=None),
        images_per_minute=sum(depth.images_per_minute for depth in depths),
        by_model_and_tier=depths,
    )
