"""API keys over HTTP: an administrator creates, lists and revokes those of the own tenant."""

from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import BaseModel

from api.deps import Admin, State
from api.queries.keys import KEY, Key, KeyWithSecret
from api.schemas import example
from api.services import keys
from api.services.keys import KeyRequest

router = APIRouter(tags=["keys"])


class Keys(BaseModel):
    model_config = example({"items": [KEY]})

    items: list[Key]


@router.post("/v1/keys", operation_id="createKey", summary="Create an API key", status_code=201)
def create_key(new: KeyRequest, caller: Admin, state: State) -> KeyWithSecret:
    """Only an operator gives the scope `operator`."""
    return keys.create_key(state, caller, new)


@router.get("/v1/keys", operation_id="listKeys", summary="List the API keys, revoked ones too")
def list_keys(caller: Admin, state: State) -> Keys:
    return Keys(items=keys.list_keys(state, caller))


@router.delete("/v1/keys/{key_id}", operation_id="revokeKey", summary="Revoke an API key", status_code=204)
def revoke_key(key_id: UUID, caller: Admin, state: State) -> Response:
    """At once, and for good. Revoking it again changes nothing."""
    keys.revoke_key(state, caller, key_id)
    return Response(status_code=204)
