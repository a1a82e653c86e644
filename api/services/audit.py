"""What administrators and operators read of the audit: a page, also as CSV."""

from collections.abc import Sequence

from api.deps import AppState
from api.pagination import Paging
from api.queries.audit import AuditRecord, find_audit_records
from api.services import csv_table
from common.accounts.keys import Caller
from common.db import transaction


def get_page(state: AppState, caller: Caller, paging: Paging) -> tuple[list[AuditRecord], str | None]:
    """Newest first, and the cursor of the next page."""
    with transaction(state.autocommit) as connection:
        return paging.cut(find_audit_records(connection, caller.reach, paging.before, paging.limit + 1))


def as_csv(records: Sequence[AuditRecord]) -> str:
    return csv_table.write(AuditRecord.model_fields, (one.model_dump(mode="json").values() for one in records))
