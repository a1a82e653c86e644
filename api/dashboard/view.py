"""A view: a template, and a function that reads what it shows.

    @view(router, "/jobs", "jobs.html")
    def list_jobs(filters: …, visitor: CurrentVisitor, state: State) -> Read:
        def read() -> dict[str, Any]: …
        return read

The function is a FastAPI dependency: it parses the request once and returns `read`, which reads the database and
returns the values of the template. The page calls `read` once; the page's event stream calls it again and again, and
sends the block `live` when that has changed. The values must depend on nothing but the URL, the tenant, and whether the
visitor may act and runs the farm.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from api.dashboard.i18n import language_of
from api.dashboard.rendering import render_live, render_page
from api.dashboard.sessions import CurrentVisitor
from api.live.event_stream import EventStream
from api.live.page_streams import PageStreams

Read = Callable[[], dict[str, Any]]


def view(router: APIRouter, path: str, template: str) -> Callable[[Callable[..., Read]], Callable[..., Read]]:
    """Register a page at `path`, and its event stream at `/live` + `path`."""

    def register(prepare: Callable[..., Read]) -> Callable[..., Read]:
        Prepared = Annotated[Read, Depends(prepare)]

        @router.get(path, name=prepare.__name__)
        def show(request: Request, visitor: CurrentVisitor, read: Prepared) -> Response:
            may = {"may_act": visitor.may_act, "runs_farm": visitor.runs_farm}
            return render_page(request, template, visitor, **may, **read())

        @router.get(f"/live{path}", name=f"{prepare.__name__} live")
        async def follow(request: Request, visitor: CurrentVisitor, read: Prepared) -> EventStream:
            def render() -> str:
                may = {"may_act": visitor.may_act, "runs_farm": visitor.runs_farm}
                return render_live(request, template, {**may, **read()})

            streams: PageStreams = request.app.state.page_streams
            shown_to = (visitor.caller.tenant_id, visitor.may_act, visitor.runs_farm, language_of(request))
            return EventStream(streams.watch((str(request.url), *shown_to), render))

        return prepare

    return register
