"""A new job, for people without curl: the API's submission as a form, and the job appearing beside it as it renders."""

import secrets
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from api.dashboard.rendering import notice, page
from api.dashboard.sessions import TheActor, TheVisitor, Visitor
from api.dashboard.snippets import draft_of
from api.dashboard.views.job import show_job
from api.deps import AppState, BaseUrl, RequestId, State
from api.queries.jobs import find_job
from api.schemas import JobRequest
from api.services import admin, jobs
from common.db import transaction
from common.enums import Tier
from common.errors import Error, Invalid
from common.recipes.recipe import wrong_fields

router = APIRouter()

WHOLE = ("width", "height", "steps", "count")
PARTS = ("guidance", "strength")
SEVERAL = {"seeds": "seed"}  # a field of the recipe that another one of the form stands for


class Typed(BaseModel):
    """The form as it was typed. What is empty comes from the model's entry in the catalogue, but for the prompts."""

    prompt: str = ""
    negative_prompt: str = ""
    model: str = ""
    width: str = ""
    height: str = ""
    steps: str = ""
    scheduler: str = ""
    guidance: str = ""
    count: str = "1"
    seed: str = ""  # several with commas: one for each image
    format: str = "png"
    tier: str = Tier.INTERACTIVE
    source: str = ""
    strength: str = ""
    mask: str = ""
    lora: str = ""  # as ink:0.8, with commas
    shown_model: str = ""  # that the form was made for
    accepted: str = ""  # the version of the model's licence that was accepted with this
    once: str = Field(default="", max_length=255)


TheTyped = Annotated[Typed, Form()]


@router.get("/new")
def new_job(
    request: Request,
    visitor: TheVisitor,
    farm: State,
    parent: Annotated[UUID | None, Query(alias="from")] = None,
    source: str = "",
) -> Response:
    """Empty, or filled in with a job's recipe (`from`), with a picture to start from (`source`)."""
    typed = copied(farm, visitor, parent) if parent else Typed(model=farm.default_model)
    typed = typed.model_copy(update={"source": source}) if source else typed
    return page(request, "new_job.html", visitor, **form_of(farm, visitor, typed))


@router.post("/new/model")
def choose_model(request: Request, typed: TheTyped, visitor: TheActor, farm: State) -> Response:
    """The same form for another model, with its limits and its licence."""
    return notice(request, "new_job_form.html", **form_of(farm, visitor, typed))


@router.post("/new")
def submit_job(
    request: Request, typed: TheTyped, visitor: TheActor, farm: State, base_url: BaseUrl, request_id: RequestId
) -> Response:
    caller = visitor.caller
    try:
        submission = written(typed)
        if typed.accepted:
            admin.accept_licence(farm, caller, typed.model, typed.accepted)
        job, _ = jobs.submit(farm, caller, submission, typed.once or None, request_id=request_id, base_url=base_url)
    except Error as error:
        return notice(request, "new_job_form.html", 422, **form_of(farm, visitor, typed, error))
    shown = show_job(job.id, visitor, farm, base_url)()
    return notice(request, "new_job_submitted.html", 201, **{**shown, **form_of(farm, visitor, typed)})


def form_of(farm: AppState, visitor: Visitor, typed: Typed, error: Error | None = None) -> dict[str, Any]:
    """What the form shows. Each has a token of its own: however often it is sent, it makes one job."""
    models = {model.name: model for model in admin.list_models(farm, visitor.caller)}
    model = models.get(typed.model) or models[farm.default_model]
    before = models.get(typed.shown_model)
    if before != model and typed.negative_prompt == (before.defaults.negative_prompt if before else ""):
        typed = typed.model_copy(update={"negative_prompt": model.defaults.negative_prompt})
    return {
        "may_act": visitor.may_act,
        "typed": typed,
        "models": models,
        "model": model,
        "tiers": list(Tier),
        "once": secrets.token_urlsafe(16),
        "code": error.code if error else None,
        **sorted_out(error),
    }


def sorted_out(error: Error | None) -> dict[str, Any]:
    """An error's sentences: those of fields by the field of the form that they are for, and what else is to be said."""
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    for one in error.fields if error else ():
        name = one.field.partition(".")[0]
        wrong[SEVERAL.get(name, name)].append(one.message)
    elsewhere = [f"{name} {message}" for name in wrong.keys() - Typed.model_fields for message in wrong[name]]
    sentence = error.message if error and not error.fields else "; ".join(elsewhere)
    return {"wrong": dict(wrong), "sentence": sentence}


def copied(farm: AppState, visitor: Visitor, job_id: UUID) -> Typed:
    """A job's recipe as one would type it. Raises NotFound."""
    with transaction(farm.autocommit) as connection:
        draft = draft_of(find_job(connection, visitor.caller.tenant_id, job_id, ""))
    seeds = draft.pop("seeds", [draft.get("seed")])
    lora = [f"{use['name']}:{use['weight']}" for use in draft.pop("lora", ())]
    several = {"seed": ", ".join(map(str, seeds)), "lora": ", ".join(lora), "shown_model": draft["model"]}
    return Typed(**{name: f"{value}" for name, value in draft.items()} | several)


def written(typed: Typed) -> JobRequest:
    """Raises Invalid for what is no submission, field by field."""
    draft: dict[str, Any] = {name: value for name, value in typed if value and name in JobRequest.model_fields}
    draft |= {name: lines(getattr(typed, name)) for name in ("prompt", "negative_prompt")}
    draft |= {name: number(draft[name], int) for name in WHOLE if name in draft}
    draft |= {name: number(draft[name], float) for name in PARTS if name in draft}
    draft["lora"] = [use(one) for one in parts(typed.lora)]
    seeds = [number(one, int) for one in parts(draft.pop("seed", ""))]
    if len(seeds) > 1:
        draft.pop("count", None)  # they say it
        draft["seeds"] = seeds
    elif seeds:
        draft["seed"] = seeds[0]
    return validated(draft)


def validated(draft: Mapping[str, Any]) -> JobRequest:
    try:
        return JobRequest.model_validate(draft)
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None


def lines(text: str) -> str:
    """As everybody else writes them: a browser sends two characters for the end of a line."""
    return text.replace("\r\n", "\n")


def parts(text: str) -> list[str]:
    return [one.strip() for one in text.replace("，", ",").split(",") if one.strip()]


def use(text: str) -> dict[str, Any]:
    name, _, weight = text.partition(":")
    return {"name": name, "weight": number(weight, float)} if weight else {"name": name}


def number(text: str, kind: type[int] | type[float]) -> Any:
    """The number that it says; itself where it says none, for the recipe to refuse."""
    try:
        return kind(text)
    except ValueError:
        return text
