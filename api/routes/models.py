"""The catalogue over HTTP: which models there are, what they can be asked for, and who serves them now."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.crew import Crew, read_crew
from api.deps import AnyCaller, TheFarm
from api.shapes import example
from common.catalog import SCHEDULERS
from common.catalog import Model as Entry
from common.db import transaction
from common.states import WorkerState

router = APIRouter(tags=["models"])


class Defaults(BaseModel):
    """What a recipe gets where it says nothing."""

    width: int
    height: int
    steps: int
    scheduler: str
    guidance: float
    negative_prompt: str


class Limits(BaseModel):
    """What a recipe may ask for at most."""

    min_side: int
    max_pixels: int
    max_steps: int
    max_count: int
    max_tokens: int = Field(description="Of the prompt, as the model's own tokenizer counts.")
    schedulers: list[str]


class Refusal(BaseModel):
    worker: str
    reason: str


class Lora(BaseModel):
    """One that recipes of the model can take."""

    name: str
    description: str
    licence: str
    licence_url: str


class Availability(BaseModel):
    """Who serves it now, and who will not."""

    available: bool = Field(description="Whether a worker that takes new work serves it.")
    workers: list[str]
    resident_on: list[str] = Field(description="Workers that hold it in memory: they begin at once.")
    refusals: list[Refusal]


MODEL = {
    "name": "zh-v0",
    "description": "Stable Diffusion with a Chinese BERT text encoder, fine-tuned from Taiyi.",
    "family": "stable-diffusion-zh",
    "source": "svjack/Stable-Diffusion-FineTuned-zh-v0",
    "licence": "CreativeML OpenRAIL-M",
    "licence_url": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "is_default": True,
    "safety_checker": True,
    "defaults": {
        "width": 512,
        "height": 512,
        "steps": 50,
        "scheduler": "lms",
        "guidance": 7.5,
        "negative_prompt": "",
    },
    "limits": {
        "min_side": 64,
        "max_pixels": 1048576,
        "max_steps": 150,
        "max_count": 64,
        "max_tokens": 512,
        "schedulers": ["ddim", "lms"],
    },
    "loras": [
        {
            "name": "ink",
            "description": "As if painted with ink.",
            "licence": "CreativeML OpenRAIL-M",
            "licence_url": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
        }
    ],
    "availability": {
        "available": True,
        "workers": ["gpu-1 cuda:0"],
        "resident_on": ["gpu-1 cuda:0"],
        "refusals": [
            {"worker": "gpu-2 cuda:0", "reason": "The repository is gated: accept its licence and set HF_TOKEN."}
        ],
    },
}


class Model(BaseModel):
    name: str
    description: str
    family: str
    source: str
    licence: str
    licence_url: str
    is_default: bool
    safety_checker: bool
    defaults: Defaults
    limits: Limits
    loras: list[Lora]
    availability: Availability


class Models(BaseModel):
    model_config = example({"items": [MODEL]})

    items: list[Model]


@router.get("/v1/models", operation_id="listModels", summary="List the models that can be asked for")
def list_models(caller: AnyCaller, farm: TheFarm) -> Models:
    with transaction(farm.autocommit) as connection:
        crew = read_crew(connection)
    return Models(items=[shape(entry, crew, farm.default_model) for entry in farm.catalog.models.values()])


def shape(entry: Entry, crew: Crew, default: str) -> Model:
    serving, refusing = crew.serving(entry.name), crew.refusing(entry.name)
    return Model(
        name=entry.name,
        description=entry.description,
        family=entry.family,
        source=entry.source,
        licence=entry.licence.name,
        licence_url=entry.licence.url,
        is_default=entry.name == default,
        safety_checker=entry.safety_checker,
        defaults=Defaults(
            width=entry.width,
            height=entry.height,
            steps=entry.steps,
            scheduler=entry.scheduler,
            guidance=entry.guidance,
            negative_prompt=entry.negative_prompt,
        ),
        limits=Limits(
            min_side=entry.min_side,
            max_pixels=entry.max_pixels,
            max_steps=entry.max_steps,
            max_count=entry.max_count,
            max_tokens=entry.token_limit,
            schedulers=list(SCHEDULERS),
        ),
        loras=[
            Lora(name=lora.name, description=lora.description, licence=lora.licence, licence_url=lora.licence_url)
            for lora in entry.loras.values()
        ],
        availability=Availability(
            available=any(member.state != WorkerState.DRAINING for member in serving),
            workers=[member.name for member in serving],
            resident_on=[member.name for member in serving if entry.name in member.resident],
            refusals=[Refusal(worker=member.name, reason=member.refusals[entry.name]) for member in refusing],
        ),
    )
