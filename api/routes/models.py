"""The catalogue over HTTP: the models, the licences to accept, and the styles."""

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


class Style(BaseModel):
    """What it adds to the prompts of a recipe: `prefix` + prompt + `suffix`, and `negative` to the negative prompt."""

    name: str
    description: str
    prefix: str
    suffix: str
    negative: str


class Styles(BaseModel):
    model_config = example(
        {
            "items": [
                {
                    "name": "ink",
                    "description": "Ink and wash.",
                    "prefix": "",
                    "suffix": ", 水墨画, 留白",
                    "negative": "照片",
                }
            ]
        }
    )

    items: list[Style]


class Acceptance(BaseModel):
    """Which version of the licence you have read, and accept."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(examples=["2022-08-22"])


@router.get("/v1/models", operation_id="listModels", summary="List the models")
def list_models(caller: AnyCaller, state: State) -> Models:
    return Models(items=models.list_models(state, caller))


@router.get("/v1/styles", operation_id="listStyles", summary="List the styles")
def list_styles(caller: AnyCaller, state: State) -> Styles:
    """Those of the catalogue, for the field `style` of a recipe."""
    return Styles(items=[Style.model_validate(one, from_attributes=True) for one in state.catalog.styles.values()])


@router.post("/v1/models/{name}/licence", operation_id="acceptLicence", summary="Accept the licence of a model")
def accept_licence(
    name: Annotated[str, Path(examples=["zh-v0"])], acceptance: Acceptance, caller: JobsWriter, state: State
) -> Model:
    """For your tenant, once, and for all models under it; another version has to be accepted again."""
    models.accept_licence(state, caller, name, acceptance.version)
    return next(model for model in models.list_models(state, caller) if model.name == name)
