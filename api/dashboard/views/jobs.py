"""The jobs that match a filter, and bulk actions on all of them."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, field_validator

from api.dashboard import sentence
from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentActor, CurrentVisitor, Reader
from api.dashboard.view import Read, view
from api.deps import AppState, State
from api.schemas import JobQuery
from api.services import bulk, jobs
from api.services.bulk import Report
from common.accounts.keys import Caller
from common.db import transaction
from common.enums import Tier
from common.errors import Invalid
from common.queue.search import JobFilter, preview

router = APIRouter()

BulkAction = Literal["cancel", "retry", "tier"]


class Filters(JobQuery):
    """The filters of the API, as a form sends them: an empty field filters nothing, a time without a zone is in UTC."""

    @field_validator("*", mode="before")
    @classmethod
    def _empty_to_none(cls, value: Any) -> Any:
        return (value.strip() or None) if isinstance(value, str) else value

    @field_validator("created_after", "created_before", mode="before")
    @classmethod
    def _in_utc(cls, value: Any) -> Any:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return value
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    @property
    def chosen(self) -> dict[str, Any]:
        """The filters that are set, as in the URL."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"cursor", "limit"})

    @property
    def query(self) -> str:
        return urlencode(self.chosen)

    @property
    def job_filter(self) -> JobFilter:
        return JobFilter(**self.model_dump(exclude={"cursor", "limit"}))


FilterQuery = Annotated[Filters, Query()]


@view(router, "/jobs", "jobs.html")
def list_jobs(filters: FilterQuery, reader: Reader, state: State) -> Read:
    """Of all tenants, an operator sees no pictures."""
    switch = {"all_tenants": "true"} if reader.all_tenants else {}

    def read() -> dict[str, Any]:
        page = jobs.get_page(state, reader, filters, "")
        older = urlencode({**filters.chosen, **switch, "cursor": page.next_cursor}) if page.next_cursor else None
        shown = {"jobs": page.items, "older": older, "filters": filters, "models": sorted(state.catalog.models)}
        return {**shown, "all_tenants": reader.all_tenants, "query": urlencode({**filters.chosen, **switch})}

    return read


@router.get("/jobs/matching")
def count_matching(request: Request, filters: FilterQuery, visitor: CurrentVisitor, state: State) -> Response:
    """The number of jobs that match, and the bulk actions on them."""
    with transaction(state.autocommit) as connection:
        matching = preview(connection, visitor.caller.tenant_id, filters.job_filter)
    return render_notice(
        request,
        "jobs_matching.html",
        may_act=visitor.may_act,
        filters=filters,
        preview=matching,
        tiers=visitor.caller.tiers,
    )


class BulkProgress(BaseModel):
    """The progress of a bulk action, which may take several requests: each request gets the sums of those before it."""

    until: AwareDatetime  # when the preview counted `matched`: later jobs are left out
    after: UUID | None = None
    tier: Tier | None = None
    matched: int = 0
    changed: int = 0
    changed_meanwhile: int = 0
    retried_before: int = 0
    model_not_allowed: int = 0
    tier_not_allowed: int = 0
    prompt_refused: int = 0

    @property
    def unchanged(self) -> dict[str, int]:
        """The number of jobs by reason. Jobs in an unfit state are known only at the end: the action skips them."""
        reasons = ("changed_meanwhile", "retried_before", "model_not_allowed", "tier_not_allowed", "prompt_refused")
        refused = {name: getattr(self, name) for name in reasons}
        unfit = 0 if self.after else max(0, self.matched - self.changed - sum(refused.values()))
        return {name: count for name, count in {"unfit": unfit, **refused}.items() if count}

    def add(self, report: Report) -> "BulkProgress":
        sums = {name: getattr(self, name) + count for name, count in report.left_alone.items()}
        return self.model_copy(update={"after": report.after, "changed": self.changed + report.changed, **sums})


@router.post("/jobs/matching/{action}")
def change_matching(
    request: Request,
    action: BulkAction,
    filters: FilterQuery,
    progress: Annotated[BulkProgress, Form()],
    visitor: CurrentActor,
    state: State,
) -> Response:
    """Change a part of the jobs that the preview counted. The notice requests the next part by itself."""
    progress = progress.add(_run(state, visitor.caller, action, filters.job_filter, progress))
    return render_notice(request, "jobs_changed.html", action=action, filters=filters, progress=progress)


def _run(state: AppState, caller: Caller, action: BulkAction, job_filter: JobFilter, progress: BulkProgress) -> Report:
    if action == "cancel":
        return bulk.cancel(state, caller, job_filter, progress.until, progress.after)
    if action == "retry":
        return bulk.retry(state, caller, job_filter, progress.until, progress.after)
    if progress.tier is None:
        raise Invalid.field("tier", sentence("tier_missing"))
    return bulk.change_tier(state, caller, job_filter, progress.until, progress.tier, progress.after)
