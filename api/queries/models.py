"""The models of the catalogue: their limits, whether their licences are accepted, and which workers serve them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection

from api.queries.fleet import Fleet, read_fleet
from api.schemas import example
from common.accounts import licences
from common.accounts.licences import LicenceVersion, version_of
from common.catalog.catalog import Catalog
from common.catalog.catalog import Model as Entry


class Defaults(BaseModel):
    """The values of fields that a recipe leaves out."""

    width: int
    height: int
    steps: int
    scheduler: str
    guidance: float
    negative_prompt: str


class Limits(BaseModel):
    """The ranges that a recipe must stay in."""

    size_multiple: int = Field(description="Widths and heights are multiples of it, in pixels.")
    min_side: int
    max_pixels: int
    max_steps: int
    max_count: int
    max_tokens: int = Field(description="Of the prompt, as the model's own tokenizer counts them.")
    schedulers: list[str]
    modes: list[str]


class Reads(BaseModel):
    """Fields of a recipe that the model does not read are refused."""

    negative_prompt: bool
    guidance: bool
    weights: bool = Field(description="Whether parts of a prompt can have weights, as (red:1.5).")


class Price(BaseModel):
    """What images cost: the amounts by image and by megapixel add up."""

    image: float
    megapixel: float = Field(description="Of 1,000,000 pixels.")
    currency: str


class Refusal(BaseModel):
    worker: str
    reason: str


class Lora(BaseModel):
    """A LoRA that recipes of the model can use."""

    name: str
    description: str
    licence: str
    licence_url: str


class Availability(BaseModel):
    """The workers that serve it now, and those that refuse it."""

    available: bool = Field(description="Whether a worker that takes new work serves it.")
    workers: list[str]
    resident_on: list[str] = Field(description="Workers that have it in memory: they start at once.")
    refusals: list[Refusal]


MODEL: dict[str, Any] = {
    "name": "zh-v0",
    "description": "Stable Diffusion with a Chinese BERT text encoder, fine-tuned from Taiyi.",
    "family": "stable-diffusion-zh",
    "source": "svjack/Stable-Diffusion-FineTuned-zh-v0",
    "licence": "CreativeML OpenRAIL-M",
    "licence_url": "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    "licence_version": "2022-08-22",
    "restrictions": ["to break any law or regulation that applies", "to exploit or harm minors, or to try to"],
    "licence_terms": [],
    "licence_accepted_at": "2026-11-22T07:00:00Z",
    "is_default": True,
    "safety_checker": True,
    "price": {"image": 0.02, "megapixel": 0, "currency": "CNY"},
    "defaults": {
        "width": 512,
        "height": 512,
        "steps": 50,
        "scheduler": "lms",
        "guidance": 7.5,
        "negative_prompt": "",
    },
    "limits": {
        "size_multiple": 8,
        "min_side": 64,
        "max_pixels": 1048576,
        "max_steps": 150,
        "max_count": 64,
        "max_tokens": 512,
        "schedulers": ["ddim", "lms"],
        "modes": ["text2image", "image2image", "inpaint"],
    },
    "reads": {"negative_prompt": True, "guidance": True, "weights": True},
    "loras": [
        {
            "name": "ink",
            "description": "Looks like an ink drawing.",
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
    model_config = example(MODEL)

    name: str
    description: str
    family: str
    source: str
    licence: str
    licence_url: str
    licence_version: str
    restrictions: list[str] = Field(
        description="Uses that its licence forbids. If there are any, it must be accepted before the first job."
    )
    licence_terms: list[str] = Field(
        description="Who may use it at all: territory, revenue, not commercially. These must be accepted as well."
    )
    licence_accepted_at: datetime | None = Field(description="When your tenant accepted this version of its licence.")
    is_default: bool
    safety_checker: bool
    price: Price | None = Field(description="Null if the catalogue names none.")
    defaults: Defaults
    limits: Limits
    reads: Reads
    loras: list[Lora]
    availability: Availability


def find_models(connection: Connection, tenant_id: UUID, catalog: Catalog, default: str) -> list[Model]:
    """Every model of the catalogue, as this tenant and these workers have it."""
    fleet, accepted = read_fleet(connection), licences.accepted(connection, tenant_id)
    return [_model(entry, fleet, accepted, default) for entry in catalog.models.values()]


def _model(entry: Entry, fleet: Fleet, accepted: Mapping[LicenceVersion, datetime], default: str) -> Model:
    serving, refusing = fleet.serving(entry.name), fleet.refusing(entry.name)
    return Model(
        name=entry.name,
        description=entry.description,
        family=entry.family,
        source=entry.source,
        licence=entry.licence.name,
        licence_url=entry.licence.url,
        licence_version=entry.licence.version,
        restrictions=list(entry.licence.restrictions),
        licence_terms=list(entry.licence.terms),
        licence_accepted_at=accepted.get(version_of(entry.licence)),
        is_default=entry.name == default,
        safety_checker=bool(entry.safety_checker),
        price=Price.model_validate(entry.price, from_attributes=True) if entry.price else None,
        defaults=Defaults(
            width=entry.width,
            height=entry.height,
            steps=entry.steps,
            scheduler=entry.scheduler,
            guidance=entry.guidance,
            negative_prompt=entry.negative_prompt,
        ),
        limits=Limits(
            size_multiple=entry.facts.size_multiple,
            min_side=entry.min_side,
            max_pixels=entry.max_pixels,
            max_steps=entry.max_steps,
            max_count=entry.max_count,
            max_tokens=entry.token_limit,
            schedulers=list(entry.facts.schedulers),
            modes=list(entry.facts.modes),
        ),
        reads=Reads(
            negative_prompt=entry.guided and entry.facts.negative_prompt != "no",
            guidance=entry.guided,
            weights=entry.facts.weighted,
        ),
        loras=[
            Lora(name=lora.name, description=lora.description, licence=lora.licence, licence_url=lora.licence_url)
            for lora in entry.loras.values()
        ],
        availability=Availability(
            available=any(member.takes_work for member in serving),
            workers=[member.name for member in serving],
            resident_on=[member.name for member in serving if entry.name in member.resident],
            refusals=[Refusal(worker=member.name, reason=member.refusals[entry.name]) for member in refusing],
        ),
    )
