"""The plan of a batch: how the prompts of its file become recipes. Pure values; reads no file and knows no table.

A prompt's place in the file decides its seeds, never which worker expands it or when: the same file and plan give the
same recipes again. What a matrix makes of one prompt has the same seeds too, so that the pictures can be compared.

A million prompts have one recipe in common, but for prompt and seeds. That is resolved once, as a `Base`, and each
prompt adds its own to it. Only what is in order goes this quick way; all else goes the way of a single job, which says
what is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from json import JSONEncoder
from typing import Any, NamedTuple, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from common.batches.matrix import Variant, variants
from common.catalog.catalog import Catalog
from common.errors import FieldError, Invalid, wrong_fields
from common.recipes.field_errors import prompt_errors
from common.recipes.img2img import FindImage, find_no_image
from common.recipes.recipe import MAX_SEED, Draft, Recipe, Seed, Text, resolve, seeds_from

PLACEHOLDER = "画"
PROMPT_TYPE: TypeAdapter[str] = TypeAdapter(Text)
SEED_TYPE: TypeAdapter[int] = TypeAdapter(Seed)
MAX_TEMPLATES = 1000  # that are remembered: lines that list their seeds have one each

to_json = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Plan(BaseModel):
    """What the recipes of a batch have in common. A prompt that comes with fields of its own goes by those."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: dict[str, Any] = Field(default_factory=dict)  # fields of a draft, its model among them
    matrix: dict[str, Any] = Field(default_factory=dict)  # see `common.batches.matrix`
    images_per_prompt: StrictInt = Field(1, ge=1)
    seed: Seed  # of the first image; the others count on from it
    skip_bad: bool = False  # leave out what cannot be rendered, in place of refusing all

    @property
    def models(self) -> list[str]:
        """Of all prompts that name none themselves, the first one first."""
        return list(dict.fromkeys(str((self.defaults | variant)["model"]) for variant in variants(self.matrix)))


@dataclass(frozen=True, eq=False)
class RecipeTemplate:
    """What the recipes of many prompts have in common: all but the prompt, and the seeds unless it has its own."""

    recipe: Recipe
    has_seeds: bool

    @cached_property
    def lane(self) -> tuple[str, str]:
        """Compatibility and model, which decide the lane."""
        return self.recipe.compatibility, self.recipe.model

    @cached_property
    def rest_of_json(self) -> str:
        return to_json(self.recipe.model_dump(mode="json", exclude={"prompt", "seeds"}))[1:]


class PlannedJob(NamedTuple):
    """The recipe of one prompt: the base, and what is its own."""

    base: RecipeTemplate
    prompt: str
    seeds: tuple[int, ...]

    @property
    def recipe(self) -> Recipe:
        return self.base.recipe.model_copy(update={"prompt": self.prompt, "seeds": self.seeds})

    @property
    def json(self) -> str:
        """Of the recipe."""
        seeds = ",".join(map(str, self.seeds))
        return f'{{"prompt":{to_json(self.prompt)},"seeds":[{seeds}],{self.base.rest_of_json}'


def planners(plan: Plan, catalog: Catalog, find: FindImage = find_no_image) -> list["Planner"]:
    """One for each variant that the plan makes of a prompt."""
    return [Planner(plan, catalog, find, variant) for variant in variants(plan.matrix)]


class Planner:
    """Makes recipes by one variant of a plan. Raises Invalid at once when it suits no prompt at all.

    `find` knows the pictures there are.
    """

    def __init__(
        self, plan: Plan, catalog: Catalog, find: FindImage = find_no_image, variant: Variant | None = None
    ) -> None:
        self._plan = plan
        self._catalog = catalog
        self._find = find
        self._variant = variant or {}
        self._common = {"count": plan.images_per_prompt, **plan.defaults, **self._variant}
        self._bases: dict[str, RecipeTemplate | None] = {}
        self._usual = self._alone({"prompt": PLACEHOLDER}, 0).base

    def planned(self, fields: Mapping[str, Any], place: int) -> PlannedJob:
        """The recipe of the prompt at this place. Raises Invalid, with every field that is wrong."""
        return self._in_order(fields, place) or self._alone(fields, place)

    def _in_order(self, fields: Mapping[str, Any], place: int) -> PlannedJob | None:
        """By a base. None where something may be wrong."""
        prompt, seed = fields.get("prompt"), fields.get("seed")
        base = self._usual if len(fields) == 1 else self._base_of(fields)
        if base is None or not _is_prompt(prompt):
            return None
        if base.has_seeds:
            return PlannedJob(base, prompt, base.recipe.seeds) if seed is None else None
        if seed is not None and not _is_seed(seed):
            return None
        first = self._root_seed(place) if seed is None else seed
        return PlannedJob(base, prompt, seeds_from(first, base.recipe.count))

    def _base_of(self, fields: Mapping[str, Any]) -> RecipeTemplate | None:
        """The base of all prompts that come with these fields, whatever the prompt and seed. None: they are wrong."""
        others = {**fields, "prompt": PLACEHOLDER}
        if "seed" in others:
            others["seed"] = None
        key = repr(others)  # unlike 1 == 1.0 == True
        if key not in self._bases:
            if len(self._bases) >= MAX_TEMPLATES:
                self._bases.clear()
            try:
                self._bases[key] = self._alone(others, 0).base
            except Invalid:
                self._bases[key] = None
        return self._bases[key]

    def _alone(self, fields: Mapping[str, Any], place: int) -> PlannedJob:
        """As a job is made of a draft."""
        if twice := self._variant.keys() & fields.keys():
            raise Invalid.of([FieldError(name, "is in the matrix, which sets it for all prompts") for name in twice])
        common = {key: value for key, value in self._common.items() if key != "count" or "seeds" not in fields}
        draft = _draft({**common, **fields})
        recipe = resolve(draft, self._catalog, self._model, self._root_seed(place), self._find)
        has_seeds = draft.seeds is not None or draft.seed is not None
        return PlannedJob(RecipeTemplate(recipe, has_seeds), recipe.prompt, recipe.seeds)

    def _root_seed(self, place: int) -> int:
        return (self._plan.seed + place * self._plan.images_per_prompt) % (MAX_SEED + 1)

    @cached_property
    def _model(self) -> str:
        return str(self._common.get("model") or self._catalog.default)


def _is_prompt(value: object) -> TypeGuard[str]:
    try:
        return not prompt_errors("prompt", PROMPT_TYPE.validate_python(value), empty_allowed=False)
    except ValidationError:
        return False


def _is_seed(value: object) -> TypeGuard[int]:
    try:
        return SEED_TYPE.validate_python(value) is not None
    except ValidationError:
        return False


def _draft(fields: Mapping[str, Any]) -> Draft:
    try:
        return Draft.model_validate(fields)
    except ValidationError as error:
        raise Invalid.of(wrong_fields(error)) from error
