"""Pages of a list, newest first: the cursor that stands for the last entry of one, and the link to the next.

One entry more than was asked for is read, to know whether there is another page.
"""

import base64
from collections.abc import Sequence
from typing import Protocol, TypeVar
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, Field


class Entry(Protocol):
    @property
    def id(self) -> UUID: ...


Listed = TypeVar("Listed", bound=Entry)

NEXT_CURSOR = "For `cursor`, to get the next page; null on the last one."


class Paging(BaseModel):
    """Which page, and how long."""

    cursor: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_-]{22}$", description="`next_cursor` of the page before."
    )
    limit: int = Field(default=50, ge=1, le=200)

    @property
    def before(self) -> UUID | None:
        """The last entry of the page before."""
        return read_cursor(self.cursor)

    def cut(self, found: Sequence[Listed], resume: UUID | None = None) -> tuple[list[Listed], str | None]:
        """The entries of this page, and the cursor of the next one if there is one: `resume`, where not all was looked
        at that could be on it."""
        page = list(found[: self.limit])
        last = page[-1].id if len(found) > self.limit else resume
        return page, write_cursor(last) if last else None


def next_link(request: Request, cursor: str | None) -> dict[str, str]:
    """The header that says where the next page is."""
    return {"Link": f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'} if cursor else {}


def write_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(cursor: str | None) -> UUID | None:
    return UUID(bytes=base64.urlsafe_b64decode(f"{cursor}==")) if cursor else None
