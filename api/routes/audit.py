"""The audit over HTTP: who did what, as JSON or CSV."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import AuditReader, State
from api.pagination import NEXT_CURSOR, Paging, next_link
from api.queries.audit import RECORD, AuditRecord
from api.schemas import example
from api.services import audit

router = APIRouter(tags=["audit"])


class AuditQuery(Paging):
    format: Literal["json", "csv"] = "json"


class AuditPage(BaseModel):
    model_config = example({"items": [RECORD], "next_cursor": "AZwvbn1QexqPPixNXm9wgQ"})

    items: list[AuditRecord]
    next_cursor: str | None = Field(description=NEXT_CURSOR)


@router.get(
    "/v1/audit",
    operation_id="readAudit",
    summary="Read the audit, newest first",
    response_model=AuditPage,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def read_audit(query: Annotated[AuditQuery, Query()], caller: AuditReader, state: State, request: Request) -> Response:
    """Who did what with the keys of your tenant. With `format=csv` a page is a table with a heading, and the header
    `Link` leads to the next one.
    """
    records, cursor = audit.get_page(state, caller, query)
    link = next_link(request, cursor)
    if query.format == "csv":
        return Response(audit.as_csv(records), headers=link, media_type="text/csv")
    page = AuditPage(items=records, next_cursor=cursor)
    return Response(page.model_dump_json(), headers=link, media_type="application/json")
