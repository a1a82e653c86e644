"""The server-sent events of one job: `state`, `progress`, `image` and `end`. Values only.

The id of an event says what its reader has by then. A reader that reconnects with it, to any process, is sent the rest,
and no image twice. Knows neither sockets nor Redis.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from fastapi.sse import format_sse_event

from api.schemas import Job, Progress
from common.enums import ImageState, JobState

END = "end"  # the id of the last event
EVENT_ID = re.compile(rf"({'|'.join(JobState)})\.([0-9a-f]{{1,256}})")
SENT_STATES = (ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED)


@dataclass(frozen=True)
class EventId:
    """What a reader has been sent: a state of the job, and images: bit *i* stands for the image of index *i*."""

    state: str = ""
    images: int = 0

    def __str__(self) -> str:
        return f"{self.state}.{self.images:x}"


def read_event_id(event_id: str | None) -> EventId:
    """The id that `Last-Event-ID` names; that of a reader that has nothing, for any other text."""
    found = EVENT_ID.fullmatch(event_id or "")
    return EventId(found[1], int(found[2], 16)) if found else EventId()


class JobEvents:
    """The events of a job as it is now, with links that begin with `base_url`; rendered once for all readers."""

    def __init__(self, job: Job, base_url: str) -> None:
        self.has_ended = job.has_ended
        self._state = job.state
        self._images = {
            image.index: image.at(base_url).model_dump_json() for image in job.images if image.state in SENT_STATES
        }
        self._end = event("end", job.at(base_url).model_dump_json(), END) if job.has_ended else b""
        self._last_args: tuple[EventId, Progress | None] | None = None
        self._last_result = b"", EventId()

    def since(self, event_id: EventId, progress: Progress | None) -> tuple[bytes, EventId]:
        """The events that a reader at this id lacks, and its id after them. Most readers in turn ask with equal values,
        so the last result is kept.
        """
        if (event_id, progress) != self._last_args:
            self._last_args, self._last_result = (event_id, progress), self._render(event_id, progress)
        return self._last_result

    def _render(self, event_id: EventId, progress: Progress | None) -> tuple[bytes, EventId]:
        events = []
        if event_id.state != self._state:
            event_id = replace(event_id, state=self._state)
            events.append(event("state", f'{{"state":"{self._state}"}}', event_id))
        if progress and self._state == JobState.RUNNING:
            events.append(progress_event(progress.step, progress.steps))
        for index, image in self._images.items():
            if not event_id.images >> index & 1:
                event_id = replace(event_id, images=event_id.images | 1 << index)
                events.append(event("image", image, event_id))
        return b"".join([*events, self._end]), event_id


@lru_cache
def progress_event(step: int, steps: int) -> bytes:
    """Without an id: a reader that reconnects is sent the latest progress anyway."""
    return format_sse_event(event="progress", data_str=f'{{"step":{step},"steps":{steps}}}')


def event(name: str, data: str, event_id: EventId | str) -> bytes:
    return format_sse_event(event=name, data_str=data, id=str(event_id))
