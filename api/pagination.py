"""Pages of a list, newest first: the cursor that stands for the last item of a page, and the link to the next page.

Queries read one item more than the page has, which says whether there is a next page.
"""

import base64
from collections.abc import Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, Field


class HasId(Protocol):
    @property
    def id(self) -> UUID: ...


Item = TypeVar("Item", bound=HasId)

NEXT_CURSOR = "The `cursor` of the next page; null on the last one."


class Paging(BaseModel):
    """Which page, and how long."""

    cursor: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_-]{22}$", description="The `next_cursor` of the page before."
    )
    limit: int = Field(default=50, ge=1, le=200)

    @property
    def before(self) -> UUID | None:
        """The last item of the page before."""
        return read_cursor(self.cursor)

    def cut(self, found: Sequence[Item], resume: UUID | None = None) -> tuple[list[Item], str | None]:
        """The items of this page, and the cursor of the next one if there is one. `resume`: where the next page starts
        if a search ended before the page was full.
        """
        page = list(found[: self.limit])
        last = page[-1].id if len(found) > self.limit else resume
        return page, write_cursor(last) if last else None


def next_link(request: Request, cursor: str | None) -> dict[str, str]:
    """The `Link` header of the next page; empty on the last one."""
    return {"Link": f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'} if cursor else {}


def write_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(cursor: str | None) -> UUID | None:
    return UUID(bytes=base64.urlsafe_b64decode(f"{cursor}==")) if cursor else None
