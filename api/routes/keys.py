"""API keys over HTTP: an administrator makes, lists and revokes those of the own tenant."""

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from api.deps import Admin, State
from api.schemas import example
from api.services import actions
from common.db import transaction
from common.enums import Scope
from common.schema import api_keys as table

router = APIRouter(tags=["keys"])


class NewKey(BaseModel):
    """What a key is called, and what it may do; `admin` may do everything."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$", examples=["the web shop"])
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), examples=[["jobs:read", "jobs:write"]])


KEY = {
    "id": "019c2f5f-1111-7222-8333-444455556666",
    "name": "the web shop",
    "scopes": ["jobs:read", "jobs:write"],
    "created_at": "2026-11-22T06:00:00Z",
    "revoked_at": None,
}


class Key(BaseModel):
    id: UUID
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class KeyWithSecret(Key):
    model_config = example(KEY | {"secret": "huaf_ExDxfhBO4NaaMcl-r6-7gAXTF6ouSXkj6TiEkresTt4"})

    secret: str = Field(description="Shown this once; the farm keeps only its HMAC.")


class Keys(BaseModel):
    model_config = example({"items": [KEY]})

    items: list[Key]


@router.post("/v1/keys", operation_id="createKey", summary="Make an API key", status_code=201)
def create_key(new: NewKey, caller: Admin, farm: State) -> KeyWithSecret:
    scopes = list(dict.fromkeys(new.scopes))
    key = actions.create_key(farm, caller, new.name, scopes)
    with transaction(farm.autocommit) as connection:
        row = connection.execute(select(table).where(table.c.id == key.id)).one()
    return KeyWithSecret.model_validate({**row._mapping, "secret": key.secret})


@router.get("/v1/keys", operation_id="listKeys", summary="List the API keys, revoked ones too")
def list_keys(caller: Admin, farm: State) -> Keys:
    with transaction(farm.autocommit) as connection:
        rows = connection.execute(select(table).where(table.c.tenant_id == caller.tenant_id).order_by(table.c.id))
        return Keys(items=[Key.model_validate(dict(row._mapping)) for row in rows])


@router.delete("/v1/keys/{key_id}", operation_id="revokeKey", summary="Revoke an API key", status_code=204)
def revoke_key(key_id: UUID, caller: Admin, farm: State) -> Response:
    """At once, and for good. Revoking it again changes nothing."""
    actions.revoke_key(farm, caller, key_id)
    return Response(status_code=204)
