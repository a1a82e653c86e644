"""The plan of a batch: how the prompts of its file become recipes. Pure values; reads no file and knows no table.

A prompt's place in the file decides its seeds, never which worker expands it or when: the same file and plan give the
same recipes again.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from common.catalog import Catalog
from common.errors import Invalid
from common.recipe import MAX_SEED, Draft, Recipe, Seed, Text, prompt_errors, resolve, wrong_fields

PLACEHOLDER = "画"
PROMPT: TypeAdapter[str] = TypeAdapter(Text)


class Plan(BaseModel):
    """What the recipes of a batch have in common. A prompt that comes with fields of its own goes by those."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: dict[str, Any] = Field(default_factory=dict)  # fields of a draft, its model among them
    images_per_prompt: StrictInt = Field(1, ge=1)
    seed: Seed  # of the first image; the others count on from it


class Planner:
    """Makes recipes by a plan. Raises Invalid at once when the plan suits no prompt at all."""

    def __init__(self, plan: Plan, catalog: Catalog) -> None:
        self._plan = plan
        self._catalog = catalog
        self._common = {"count": plan.images_per_prompt, **plan.defaults}
        self._usual = self._resolve({"prompt": PLACEHOLDER}, 0)

    def recipe(self, fields: Mapping[str, Any], place: int) -> Recipe:
        """The recipe of the prompt at this place. Raises Invalid, with every field that is wrong."""
        if fields.keys() != {"prompt"}:
            return self._resolve(fields, place)
        prompt = _prompt(fields["prompt"])  # the usual case, and a million of them
        if wrong := prompt_errors("prompt", prompt, empty_allowed=False):
            raise Invalid.of(wrong)
        first, count = self._seed(place), self._plan.images_per_prompt
        seeds = tuple((first + i) % (MAX_SEED + 1) for i in range(count))
        return self._usual.model_copy(update={"prompt": prompt, "seeds": seeds})

    def _resolve(self, fields: Mapping[str, Any], place: int) -> Recipe:
        common = {key: value for key, value in self._common.items() if key != "count" or "seeds" not in fields}
        return resolve(_draft({**common, **fields}), self._catalog, self._model, root_seed=self._seed(place))

    def _seed(self, place: int) -> int:
        return (self._plan.seed + place * self._plan.images_per_prompt) % (MAX_SEED + 1)

    @cached_property
    def _model(self) -> str:
        return str(self._plan.defaults.get("model") or self._catalog.default)


def _prompt(value: object) -> str:
    try:
        return PROMPT.validate_python(value)
    except ValidationError:
        return _draft({"prompt": value}).prompt  # it says what is wrong, and with which field


def _draft(fields: Mapping[str, Any]) -> Draft:
    try:
        return Draft.model_validate(fields)
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from error
