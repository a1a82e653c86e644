"""What callers read of usage: their own; operators that of all tenants. Also as CSV."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

from api import sentence
from api.deps import AppState
from api.queries.usage import MOST_ROWS, Dimension, Sums, Usage, find_usage, labels_of
from api.services import csv_table
from common.accounts.keys import Caller
from common.db import transaction
from common.errors import Invalid

DAYS, MOST_DAYS = 30, 366


def days_of(first: date | None, last: date | None) -> tuple[date, date]:
    """The first and the last day that are asked for: those up to today, or DAYS of them. Raises Invalid."""
    last = last or datetime.now(UTC).date()
    first = first or date.fromordinal(max(1, last.toordinal() - DAYS + 1))
    if first > last:
        raise Invalid.field("from", sentence("from_after_to", to=last))
    if last.toordinal() - first.toordinal() >= MOST_DAYS:
        raise Invalid.field("from", sentence("too_many_days", most=MOST_DAYS))
    return first, last


def read(
    state: AppState, caller: Caller, first: date, last: date, by: Sequence[Dimension], *, all_tenants: bool
) -> tuple[list[Usage], Sums]:
    """Raises OperatorNeeded for usage of all tenants, and Invalid for more than MOST_ROWS rows."""
    if all_tenants or "tenant" in by:
        caller.require_operator()
    reach = None if all_tenants or "tenant" in by else caller.tenant_id
    with transaction(state.autocommit) as connection:
        found = find_usage(connection, reach, first, last, by, state.catalog)
    if found is None:
        raise Invalid.field("by", sentence("too_many_rows", most=MOST_ROWS))
    return found


def as_csv(items: Sequence[Usage], by: Sequence[Dimension], currency: str | None) -> str:
    """A line for each group."""
    columns = [*labels_of(by), *Sums.model_fields, "currency"]
    lines = (item.model_dump(mode="json") | {"currency": None if item.cost is None else currency} for item in items)
    return csv_table.write(columns, ([line[column] for column in columns] for line in lines))
