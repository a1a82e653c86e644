"""The events of a job over HTTP. `api.live.job_events` says what they are, `api.live.event_stream` sends them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Response

from api.deps import BaseUrl, JobsReader, State
from api.live.event_stream import RETRY, EventStream, follow
from api.live.job_events import END, EventId, event, progress_event, read_event_id
from api.schemas import IMAGE, Image
from api.services import jobs

router = APIRouter(tags=["jobs"])

EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "event": {"enum": ["state", "progress", "image", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string"},
    },
}

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
        200: {"description": "Its events.", "content": {"text/event-stream": {"schema": EVENT, "example": EXAMPLE}}},
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
    """Server-sent events, until the job has ended; the first ones say how the job is now.

    `state`: the state of the job. `progress`: `step` and `steps` of the pipeline call that renders it, at most ten
    times a second. `image`: an image that is stored, flagged or failed, as in the job. `end`: the whole job, and the
    last event.

    If a stream ends without `end`, such as when this process stops, request it again with `Last-Event-ID`.
    """
    if jobs.has_ended(state, caller, job_id) and last_event_id == END:
        return Response(status_code=204)
    event_id = read_event_id(last_event_id)
    close = state.requests.open_stream(caller.tenant_id, state.limits_of(caller))
    return EventStream(follow(state.job_watcher, job_id, event_id, base_url), close)
