"""What administrators and operators read of the audit: a page, also as CSV."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from api.deps import AppState
from api.pagination import Paging
from api.queries.audit import AuditRecord, find_audit_records
from common.accounts.tenants import Caller
from common.db import transaction

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formulas begin


def get_page(state: AppState, caller: Caller, paging: Paging) -> tuple[list[AuditRecord], str | None]:
    """Newest first, and the cursor of the next page."""
    with transaction(state.autocommit) as connection:
        return paging.cut(find_audit_records(connection, caller.reach, paging.before, paging.limit + 1))


def as_csv(records: Sequence[AuditRecord]) -> str:
    """A heading, and a line for each record. No cell is a formula of a spreadsheet: `=1` is written as `'=1`."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(AuditRecord.model_fields)
    for record in records:
        writer.writerow(map(_cell, record.model_dump(mode="json").values()))
    return table.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(FORMULAS) else text
