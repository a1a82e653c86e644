"""What those are told who follow a job: the events `state`, `progress`, `image` and `end`. Values only.

The id of an event is a bookmark: what its reader knows by then. Whoever comes back with it, to whatever process, is
told the rest, and no image twice. Knows neither sockets nor Redis.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from fastapi.sse import format_sse_event

from api.schemas import Job, Progress
from common.enums import ImageState, JobState

END = "end"  # the id of the last event
EVENT_ID = re.compile(rf"({'|'.join(JobState)})\.([0-9a-f]{{1,256}})")
DECIDED = (ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED)


@dataclass(frozen=True)
class EventId:
    """The state that a reader was told, and the images: bit *i* stands for the image of index *i*."""

    state: str = ""
    images: int = 0

    def __str__(self) -> str:
        return f"{self.state}.{self.images:x}"


def read_event_id(event_id: str | None) -> EventId:
    """What is no id of ours is the beginning."""
    found = EVENT_ID.fullmatch(event_id or "")
    return EventId(found[1], int(found[2], 16)) if found else EventId()


class JobEvents:
    """A job as its events tell it, rendered once for all who read it at one address."""

    def __init__(self, job: Job, base_url: str) -> None:
        self.has_ended = job.has_ended
        self._state = job.state
        self._images = {
            image.index: image.at(base_url).model_dump_json() for image in job.images if image.state in DECIDED
        }
        self._end = event("end", job.at(base_url).model_dump_json(), END) if job.has_ended else b""
        self._asked: tuple[EventId, Progress | None] | None = None
        self._answer = b"", EventId()

    def after(self, bookmark: EventId, progress: Progress | None) -> tuple[bytes, EventId]:
        """All that is new to a reader, and his bookmark after it. Most readers ask the same, one after the other."""
        if (bookmark, progress) != self._asked:
            self._asked, self._answer = (bookmark, progress), self._tell(bookmark, progress)
        return self._answer

    def _tell(self, bookmark: EventId, progress: Progress | None) -> tuple[bytes, EventId]:
        said = []
        if bookmark.state != self._state:
            bookmark = replace(bookmark, state=self._state)
            said.append(event("state", f'{{"state":"{self._state}"}}', bookmark))
        if progress and self._state == JobState.RUNNING:
            said.append(progress_event(progress.step, progress.steps))
        for index, image in self._images.items():
            if not bookmark.images >> index & 1:
                bookmark = replace(bookmark, images=bookmark.images | 1 << index)
                said.append(event("image", image, bookmark))
        return b"".join([*said, self._end]), bookmark


@lru_cache
def progress_event(step: int, steps: int) -> bytes:
    """Without an id: who comes back is told the latest in any case."""
    return format_sse_event(event="progress", data_str=f'{{"step":{step},"steps":{steps}}}')


def event(name: str, data: str, bookmark: EventId | str) -> bytes:
    return format_sse_event(event=name, data_str=data, id=str(bookmark))
