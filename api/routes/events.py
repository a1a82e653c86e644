"""The news of a job as a stream. What its events say is in `api.live.job_events`;

`api.live.job_watcher` knows when there is one.
"""

from collections.abc import AsyncGenerator
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.deps import BaseUrl, JobsReader, State
from api.live.event_stream import EventStream
from api.live.job_events import END, EventId, event, progress_event, read_event_id
from api.live.job_watcher import JobWatcher
from api.queries.jobs import has_ended
from api.schemas import IMAGE, Image
from common.db import transaction

router = APIRouter(tags=["jobs"])

PING_S = 15.0
RETRY = format_sse_event(retry=1000)  # milliseconds until a reader whose connection is lost comes back

EXAMPLE = b"".join(
    [
        RETRY,
        event("state", '{"state":"running"}', EventId("running")),
        progress_event(12, 50),
        event("state", '{"state":"succeeded"}', EventId("succeeded")),
        event("image", Image.model_validate(IMAGE).model_dump_json(), EventId("succeeded", 1)),
        event("end", '{"id":"019c2f6e-7d50-7b1a-8f3e-2c4d5e6f7081","state":"succeeded", …}', END),
    ]
).decode()


@router.get(
    "/v1/jobs/{job_id}/events",
    operation_id="followJob",
    summary="Follow a job",
    status_code=200,
    response_class=EventStream,
    responses={
        200: {"description": "Its news.", "content": {"text/event-stream": {"example": EXAMPLE}}},
        204: {"description": "`Last-Event-ID` is that of the end: there is nothing more."},
    },
)
def follow_job(
    job_id: UUID,
    caller: JobsReader,
    state: State,
    base_url: BaseUrl,
    last_event_id: Annotated[
        str | None, Header(description="The `id` of the last event that was read: the stream goes on after it.")
    ] = None,
) -> Response:
    """Server-sent events, until the job has ended; who comes late is told at once how it is.

    `state`: the state of the job. `progress`: `step` and `steps` of the pipeline call that renders it, at most ten
    times a second. `image`: an image that is stored, flagged or failed, as in the job. `end`: the whole job, and the
    last event.

    A stream that ends without `end`, such as when this process stops, is to be asked for again, with `Last-Event-ID`.
    """
    with transaction(state.autocommit) as connection:
        is_over = has_ended(connection, caller.tenant_id, job_id)
    if is_over and last_event_id == END:
        return Response(status_code=204)
    return EventStream(news(state.job_watcher, job_id, read_event_id(last_event_id), base_url))


async def news(room: JobWatcher, job_id: UUID, bookmark: EventId, base_url: str) -> AsyncGenerator[bytes]:
    """All that is new, whenever something is: who reads slowly is told less often, and misses nothing but progress."""
    yield RETRY
    progress = None
    with room.watch(job_id) as watcher:
        while not watcher.is_sent_away:
            if account := watcher.watched.account(base_url):
                latest = watcher.watched.progress
                said, bookmark = account.after(bookmark, latest if latest is not progress else None)
                progress = latest
                if said:
                    yield said
                if account.has_ended:
                    return
            if not await watcher.news(PING_S):
                yield KEEPALIVE_COMMENT
