"""Usage: what was stored in the last days, by day as a chart, by model and key, and what it cost.

An operator may look at all tenants, by tenant instead of key.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from api.dashboard.charts import build_bars
from api.dashboard.sessions import CurrentVisitor
from api.dashboard.view import Read, view
from api.deps import State
from api.queries.usage import Dimension, Usage
from api.services import usage as service
from common.accounts.keys import Caller

router = APIRouter()

SPANS = (7, 30, 90)  # days to choose from
SHOWN = 50  # rows of a table


class UsageFilter(BaseModel):
    """How many days up to today, and of whom."""

    days: int = Field(30, ge=1, le=service.MOST_DAYS)
    all_tenants: bool = False


async def reader(visitor: CurrentVisitor, shown: Annotated[UsageFilter, Query()]) -> Caller:
    """The visitor. Raises OperatorNeeded if it asks for all tenants and is no operator."""
    if shown.all_tenants:
        visitor.caller.require_operator()
    return visitor.caller


@view(router, "/usage", "usage.html")
def usage(shown: Annotated[UsageFilter, Query()], state: State, caller: Annotated[Caller, Depends(reader)]) -> Read:
    def read() -> dict[str, Any]:
        _, last = service.days_of(None, None)
        first = last - timedelta(days=shown.days - 1)

        def read_by(dimension: Dimension) -> tuple[list[Usage], Any]:
            return service.read(state, caller, first, last, [dimension], all_tenants=shown.all_tenants)

        days, total = read_by("day")
        owner: Dimension = "tenant" if shown.all_tenants else "key"
        tables = {dimension: read_by(dimension)[0] for dimension in ("model", owner)}
        return {
            "filters": shown,
            "spans": SPANS,
            "total": total,
            "currency": state.catalog.currency,
            "dates": [first + timedelta(days=shown.days // 2), first, last],
            "chart": build_bars(images_by_day(days, first, last)),
            "tables": {name: most_first(rows)[:SHOWN] for name, rows in tables.items()},
            "left_out": {name: max(0, len(rows) - SHOWN) for name, rows in tables.items()},
        }

    return read


def images_by_day(days: Sequence[Usage], first: date, last: date) -> list[int]:
    """A number for each day, also for those without usage."""
    images = {row.day: row.images for row in days}
    return [images.get(first + timedelta(days=n), 0) for n in range((last - first).days + 1)]


def most_first(rows: Sequence[Usage]) -> list[Usage]:
    return sorted(rows, key=lambda row: row.images, reverse=True)
