"""Jobs: those that match a filter, live, and what is done to all of them at once."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, field_validator

from api.dashboard.rendering import notice
from api.dashboard.sessions import TheActor, TheVisitor
from api.dashboard.view import Read, view
from api.deps import AppState, State
from api.schemas import JobQuery
from api.services import bulk, jobs
from api.services.bulk import Report
from common.accounts.tenants import Caller
from common.db import transaction
from common.enums import Tier
from common.errors import Invalid
from common.queue.search import JobFilter, preview

router = APIRouter()

Deed = Literal["cancel", "retry", "tier"]


class Filters(JobQuery):
    """As the API's, but as a form sends them: empty where nothing is chosen, moments without a zone in UTC."""

    @field_validator("*", mode="before")
    @classmethod
    def nothing_chosen(cls, value: Any) -> Any:
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("created_after", "created_before", mode="before")
    @classmethod
    def in_utc(cls, value: Any) -> Any:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return value
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def chosen(self) -> dict[str, Any]:
        """What is chosen, as it stands in the address."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"cursor", "limit"})

    @property
    def query(self) -> str:
        return urlencode(self.chosen)

    @property
    def selection(self) -> JobFilter:
        return JobFilter(**self.model_dump(exclude={"cursor", "limit"}))


TheFilters = Annotated[Filters, Query()]


@view(router, "/jobs", "jobs.html")
def list_jobs(filters: TheFilters, visitor: TheVisitor, farm: State) -> Read:
    def look() -> dict[str, Any]:
        page = jobs.get_page(farm, visitor.caller, filters, "")
        older = urlencode({**filters.chosen, "cursor": page.next_cursor}) if page.next_cursor else None
        return {"jobs": page.items, "older": older, "filters": filters, "models": sorted(farm.catalog.models)}

    return look


@router.get("/jobs/matching")
def count_matching(request: Request, filters: TheFilters, visitor: TheVisitor, farm: State) -> Response:
    """How many jobs match, and what can be done to them."""
    with transaction(farm.autocommit) as connection:
        seen = preview(connection, visitor.caller.tenant_id, filters.selection)
    return notice(request, "jobs_matching.html", may_act=visitor.may_act, filters=filters, preview=seen)


class Progress(BaseModel):
    """How far a deed has come, which may take several requests; each is told what those before it did."""

    until: AwareDatetime  # the moment of the preview, which counted `matched`: younger jobs are none of them
    after: UUID | None = None
    tier: Tier | None = None
    matched: int = 0
    changed: int = 0
    changed_meanwhile: int = 0
    retried_before: int = 0
    model_not_allowed: int = 0

    @property
    def left_alone(self) -> dict[str, int]:
        """How many by reason. Those to which nothing could be done the deed did not even look at."""
        refused = {name: getattr(self, name) for name in ("changed_meanwhile", "retried_before", "model_not_allowed")}
        unfit = 0 if self.after else max(0, self.matched - self.changed - sum(refused.values()))
        return {name: count for name, count in {"unfit": unfit, **refused}.items() if count}

    def and_then(self, report: Report) -> "Progress":
        found = {name: getattr(self, name) + count for name, count in report.left_alone.items()}
        return self.model_copy(update={"after": report.after, "changed": self.changed + report.changed, **found})


@router.post("/jobs/matching/{deed}")
def change_matching(
    request: Request,
    deed: Deed,
    filters: TheFilters,
    progress: Annotated[Progress, Form()],
    visitor: TheActor,
    farm: State,
) -> Response:
    """Goes on by itself, page by page, until nothing is left that the preview counted."""
    done = progress.and_then(carry_out(farm, visitor.caller, deed, filters.selection, progress))
    return notice(request, "jobs_changed.html", deed=deed, filters=filters, progress=done)


def carry_out(farm: AppState, caller: Caller, deed: Deed, chosen: JobFilter, progress: Progress) -> Report:
    if deed == "cancel":
        return bulk.cancel(farm, caller, chosen, progress.until, progress.after)
    if deed == "retry":
        return bulk.retry(farm, caller, chosen, progress.until, progress.after)
    if progress.tier is None:
        raise Invalid.field("tier", "is missing")
    return bulk.change_tier(farm, caller, chosen, progress.until, progress.tier, progress.after)
