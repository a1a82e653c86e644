"""The form for a new job. The submitted job appears beside the form and is updated while it renders."""

import secrets
from collections import defaultdict
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError

from api.dashboard.rendering import render_notice, render_page
from api.dashboard.sessions import CurrentActor, CurrentVisitor, Visitor
from api.dashboard.snippets import draft_of
from api.dashboard.views.job import show_job
from api.deps import AppState, BaseUrl, RequestId, State
from api.queries.jobs import find_job
from api.schemas import JobRequest
from api.services import jobs, limits
from api.services.models import accept_licence, list_models
from common.db import transaction
from common.enums import Tier
from common.errors import Error, Invalid, wrong_fields

router = APIRouter()

INTEGERS = ("width", "height", "steps", "count")
FLOATS = ("guidance", "strength")
FORM_FIELD = {"seeds": "seed"}  # recipe field → form field, where they differ


class JobForm(BaseModel):
    """The form as typed. An empty field takes the model's default, except for the prompts."""

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
    style: str = ""
    shown_model: str = ""  # the model whose defaults the form shows
    accepted: str = ""  # the version of the model's licence that is accepted with this submission
    idempotency_key: str = Field(default="", max_length=255)


SubmittedForm = Annotated[JobForm, Form()]


@router.get("/new")
def new_job(
    request: Request,
    visitor: CurrentVisitor,
    state: State,
    parent: Annotated[UUID | None, Query(alias="from")] = None,
    source: str = "",
) -> Response:
    """An empty form, or one with the recipe of a job (`from`) and an input image (`source`)."""
    form = form_of_job(state, visitor, parent) if parent else JobForm(model=state.default_model)
    form = form.model_copy(update={"source": source}) if source else form
    limited = limits.read_limited(state, visitor.caller)
    return render_page(request, "new_job.html", visitor, limits=limited, **form_values(state, visitor, form))


@router.post("/new/model")
def choose_model(request: Request, form: SubmittedForm, visitor: CurrentActor, state: State) -> Response:
    """The same form with the limits and the licence of another model."""
    return render_notice(request, "new_job_form.html", **form_values(state, visitor, form))


@router.post("/new")
def submit_job(
    request: Request, form: SubmittedForm, visitor: CurrentActor, state: State, base_url: BaseUrl, request_id: RequestId
) -> Response:
    caller = visitor.caller
    try:
        submission = parse_form(form)
        if form.accepted:
            accept_licence(state, caller, form.model, form.accepted)
        key = form.idempotency_key or None
        job, _ = jobs.submit(state, caller, submission, key, request_id=request_id, base_url=base_url)
    except Error as error:
        return render_notice(request, "new_job_form.html", 422, **form_values(state, visitor, form, error))
    job_values = show_job(job.id, visitor, state, base_url)()
    return render_notice(request, "new_job_submitted.html", 201, **{**job_values, **form_values(state, visitor, form)})


def form_values(state: AppState, visitor: Visitor, form: JobForm, error: Error | None = None) -> dict[str, Any]:
    """The values of the form's template. Each form has a new idempotency key: sent twice, it makes one job."""
    models = {model.name: model for model in list_models(state, visitor.caller)}
    model = models.get(form.model) or models[state.default_model]
    previous = models.get(form.shown_model)
    if previous != model and form.negative_prompt == (previous.defaults.negative_prompt if previous else ""):
        form = form.model_copy(update={"negative_prompt": model.defaults.negative_prompt})
    return {
        "may_act": visitor.may_act,
        "form": form,
        "models": models,
        "model": model,
        "styles": state.catalog.styles,
        "tiers": visitor.caller.tiers,
        "idempotency_key": secrets.token_urlsafe(16),
        "code": error.code if error else None,
        **error_values(error),
    }


def error_values(error: Error | None) -> dict[str, Any]:
    """The sentences of an error: `field_errors` by field of the form, and one `sentence` with the rest."""
    by_field: defaultdict[str, list[str]] = defaultdict(list)
    for one in error.fields if error else ():
        name = one.field.partition(".")[0]
        by_field[FORM_FIELD.get(name, name)].append(one.message)
    others = [f"{name} {message}" for name in by_field.keys() - JobForm.model_fields for message in by_field[name]]
    sentence = error.message if error and not error.fields else "; ".join(others)
    return {"field_errors": dict(by_field), "sentence": sentence}


def form_of_job(state: AppState, visitor: Visitor, job_id: UUID) -> JobForm:
    """The form that submits the same recipe. Raises NotFound."""
    with transaction(state.autocommit) as connection:
        draft = draft_of(find_job(connection, visitor.caller.tenant_id, job_id, ""))
    seeds = draft.pop("seeds", [draft.get("seed")])
    lora = [f"{use['name']}:{use['weight']}" for use in draft.pop("lora", ())]
    lists = {"seed": ", ".join(map(str, seeds)), "lora": ", ".join(lora), "shown_model": draft["model"]}
    return JobForm(**{name: f"{value}" for name, value in draft.items()} | lists)


def parse_form(form: JobForm) -> JobRequest:
    """Raises Invalid, with a sentence for each wrong field."""
    draft: dict[str, Any] = {name: value for name, value in form if value and name in JobRequest.model_fields}
    draft |= {name: normalize_newlines(getattr(form, name)) for name in ("prompt", "negative_prompt")}
    draft |= {name: parse_number(draft[name], int) for name in INTEGERS if name in draft}
    draft |= {name: parse_number(draft[name], float) for name in FLOATS if name in draft}
    draft["lora"] = [parse_lora(one) for one in split_list(form.lora)]
    seeds = [parse_number(one, int) for one in split_list(draft.pop("seed", ""))]
    if len(seeds) > 1:
        draft.pop("count", None)  # the seeds imply it
        draft["seeds"] = seeds
    elif seeds:
        draft["seed"] = seeds[0]
    try:
        return JobRequest.model_validate(draft)
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from None


def normalize_newlines(text: str) -> str:
    """A browser sends CR LF at the end of a line."""
    return text.replace("\r\n", "\n")


def split_list(text: str) -> list[str]:
    return [one.strip() for one in text.replace("，", ",").split(",") if one.strip()]


def parse_lora(text: str) -> dict[str, Any]:
    name, _, weight = text.partition(":")
    return {"name": name, "weight": parse_number(weight, float)} if weight else {"name": name}


def parse_number(text: str, kind: type[int] | type[float]) -> Any:
    """The number; the text itself if it is none, which the validation of the recipe reports."""
    try:
        return kind(text)
    except ValueError:
        return text
