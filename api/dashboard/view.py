"""What makes a screen: a template, and a function that says what it shows now.

    @screen(router, "/jobs", "jobs.html")
    def jobs(filters: …, visitor: TheVisitor, farm: TheFarm) -> Look:
        def look() -> dict[str, Any]: …
        return look

The function is a dependency like any other: it reads the address once and gives back `look`, which reads the farm. The
page shows what it finds; the page's stream calls it again and again, and sends the block `live` when that has changed.
What `look` finds must depend on nothing but the address, the tenant and whether the visitor may act.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from api.dashboard.i18n import language_of
from api.dashboard.rendering import live, page
from api.dashboard.sessions import TheVisitor
from api.live.event_stream import EventStream
from api.live.page_streams import PageStreams

Read = Callable[[], dict[str, Any]]


def view(router: APIRouter, path: str, template: str) -> Callable[[Callable[..., Read]], Callable[..., Read]]:
    """Give a router the page of this path and its stream, under `/live`."""

    def register(read: Callable[..., Read]) -> Callable[..., Read]:
        Found = Annotated[Read, Depends(read)]

        @router.get(path, name=read.__name__)
        def show(request: Request, visitor: TheVisitor, look: Found) -> Response:
            return page(request, template, visitor, may_act=visitor.may_act, **look())

        @router.get(f"/live{path}", name=f"{read.__name__} live")
        async def follow(request: Request, visitor: TheVisitor, look: Found) -> EventStream:
            def draw() -> str:
                return live(request, template, {"may_act": visitor.may_act, **look()})

            boards: PageStreams = request.app.state.page_streams
            shown_to = (visitor.caller.tenant_id, visitor.may_act, language_of(request))
            return EventStream(boards.watch((str(request.url), *shown_to), draw))

        return read

    return register
