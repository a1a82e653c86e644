"""The catalogue over HTTP: the models, and the licences to accept."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from api.deps import AnyCaller, JobsWriter, State
from api.queries.models import MODEL, Model
from api.schemas import example
from api.services import models

router = APIRouter(tags=["models"])


class Models(BaseModel):
    model_config = example({"items": [MODEL]})

    items: list[Model]


class Acceptance(BaseModel):
    """Which version of the licence you have read, and accept."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(examples=["2022-08-22"])


@router.get("/v1/models", operation_id="listModels", summary="List the models")
def list_models(caller: AnyCaller, state: State) -> Models:
    return Models(items=models.list_models(state, caller))


@router.post("/v1/models/{name}/licence", operation_id="acceptLicence", summary="Accept the licence of a model")
def accept_licence(
    name: Annotated[str, Path(examples=["zh-v0"])], acceptance: Acceptance, caller: JobsWriter, state: State
) -> Model:
    """For your tenant, once, and for all models under it; another version has to be accepted again."""
    models.accept_licence(state, caller, name, acceptance.version)
    return next(model for model in models.list_models(state, caller) if model.name == name)
