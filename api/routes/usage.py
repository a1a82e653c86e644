"""Usage over HTTP: what was stored, by day, key, model or tier, as JSON or CSV."""

import re
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, BeforeValidator, Field

from api import sentence
from api.deps import State, UsageReader
from api.queries.usage import COLUMNS, Dimension, Sums, Usage
from api.schemas import example
from api.services import usage

router = APIRouter(tags=["usage"])

BY = f"^({'|'.join(COLUMNS)})(,({'|'.join(COLUMNS)}))*$"
SUMS = {"images": 1204, "gpu_seconds": 4876.2, "megapixels": 315.621376, "bytes": 412307117, "cost": 24.08}
USAGE = {
    "from": "2026-11-01",
    "to": "2026-11-30",
    "by": ["model"],
    "currency": "CNY",
    "items": [{"model": "zh-v0", **SUMS}],
    "total": SUMS,
}


def _written_out(day: Any) -> Any:
    """Numbers, which pydantic takes for seconds since 1970, are no days."""
    if isinstance(day, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?", day):
        raise ValueError(sentence("day_invalid"))
    return day


Day = Annotated[date, BeforeValidator(_written_out)]


class UsageQuery(BaseModel):
    """Which days, and what they are added up by."""

    first: Day | None = Field(None, alias="from", description="The first day, in UTC. Default: of 30 days.")
    last: Day | None = Field(None, alias="to", description="The last day, which counts too. Default: today.")
    by: str = Field(
        "day", pattern=BY, max_length=60, description=f"One or several of {', '.join(COLUMNS)}, with commas."
    )
    all_tenants: bool = Field(False, description="Of all tenants, as with `by=tenant`: needs the scope `operator`.")
    format: Literal["json", "csv"] = "json"

    @property
    def dimensions(self) -> list[Dimension]:
        asked = self.by.split(",")
        return [dimension for dimension in COLUMNS if dimension in asked]


class UsageReport(BaseModel):
    model_config = example(USAGE)

    first: date = Field(serialization_alias="from")
    last: date = Field(serialization_alias="to")
    by: list[Dimension]
    currency: str | None = Field(description="Of every cost; null if the catalogue has no prices.")
    items: list[Usage] = Field(description="Sorted by what they are grouped by; nothing where nothing was stored.")
    total: Sums


@router.get(
    "/v1/usage",
    operation_id="readUsage",
    summary="Read what was stored, and what it cost",
    response_model=UsageReport,
    response_model_exclude_unset=True,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def read_usage(query: Annotated[UsageQuery, Query()], caller: UsageReader, state: State) -> UsageReport | Response:
    """Images, the GPU's time, pixels and bytes of your tenant. An image counts once, when it is stored; what failed,
    was flagged or was rendered in vain costs nothing, and what is deleted later still counts. Needs the scope `viewer`
    or `jobs:read`.
    """
    first, last = usage.days_of(query.first, query.last)
    by, currency = query.dimensions, state.catalog.currency
    items, total = usage.read(state, caller, first, last, by, all_tenants=query.all_tenants)
    if query.format == "csv":
        headers = {"Content-Disposition": f'attachment; filename="usage-{first}-{last}.csv"'}
        return Response(usage.as_csv(items, by, currency), headers=headers, media_type="text/csv")
    return UsageReport(first=first, last=last, by=by, currency=currency, items=items, total=total)
