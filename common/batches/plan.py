"""The plan of a batch: how the prompts of its file become recipes. Pure values; knows no files and no tables.

The seeds of a prompt follow from its position in the file, not from the worker that expands it or the time: the same
file and plan give the same recipes again. All variants that a matrix makes of a prompt have the same seeds, so that
their images can be compared.

A million prompts share one recipe but for the prompt and the seeds. It is resolved once, as a template. A prompt that
is not plainly right is resolved like a single job, which names every error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from json import JSONEncoder
from typing import Any, NamedTuple, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

from common.batches import sentence
from common.batches.matrix import Variant, variants
from common.catalog.catalog import Catalog, Model
from common.errors import FieldError, Invalid, wrong_fields
from common.prompt_files.columns import Columns, Keep
from common.recipes.field_errors import prompt_errors
from common.recipes.img2img import FindImage, find_no_image
from common.recipes.needs import Since, needs_code
from common.recipes.origin import origin_json
from common.recipes.prompt_templates import Templates
from common.recipes.recipe import MAX_SEED, SINCE, Draft, Recipe, Seed, Text, resolve, seeds_from
from common.recipes.text_cache import TextCache

# Fields of a plan that not all code knows.
PLAN_SINCE: Since = dict.fromkeys(("columns", "keep", "reuse", "template"), lambda _: 9)
PLACEHOLDER = "画"
PROMPT_TYPE: TypeAdapter[str] = TypeAdapter(Text)
SEED_TYPE: TypeAdapter[int] = TypeAdapter(Seed)
TEMPLATE_BYTES, BYTES_PER_CHARACTER = 5_000, 12  # a recipe; of its texts it has up to three copies
MAX_TEMPLATE_BYTES = 16_000_000  # of all variants; lines that list their seeds have a template each

to_json = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_false(value: bool) -> bool:
    return not value


class Plan(BaseModel):
    """What the recipes of a batch have in common. The fields of a prompt's own line come before the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: dict[str, Any] = Field(default_factory=dict)  # fields of a draft, its model among them
    matrix: dict[str, Any] = Field(default_factory=dict)  # see `common.batches.matrix`
    images_per_prompt: StrictInt = Field(1, ge=1)
    seed: Seed  # of the first image; the others count on from it
    skip_bad: bool = False  # skip the lines that cannot be rendered, in place of refusing the batch
    template: Templates | None = None  # how its prompts are read as templates; None: as they stand
    columns: dict[str, str] = Field(default_factory=dict)  # the column of a field, where its name does not say so
    keep: Keep = None  # which of the other columns travel with the jobs
    reuse: bool = Field(default=False, exclude_if=_is_false)  # what is stored already, in place of rendering it

    def columns_of_file(self) -> Columns:
        """What the columns of its file mean."""
        return Columns(self.columns, self.keep)

    @property
    def models(self) -> list[str]:
        """The models of the prompts that name none, in the order of the variants."""
        lists = (self.matrix, *self.matrix.get("zip", ()))  # not `variants`: it refuses fields that it does not know
        named = next((fields["model"] for fields in lists if "model" in fields), None)
        return list(dict.fromkeys(map(str, named or [self.defaults["model"]])))

    @property
    def needs_code(self) -> int:
        """The least CODE that can check and expand it. The file itself may need newer code."""
        return max(
            needs_code(PLAN_SINCE, self.model_dump(mode="json", exclude_defaults=True)),
            *(needs_code(SINCE, self.defaults | variant) for variant in variants(self.matrix)),
        )


@dataclass(frozen=True, eq=False)
class RecipeTemplate:
    """The recipe of many prompts: all of it but the prompt and, unless `has_seeds`, the seeds."""

    recipe: Recipe
    has_seeds: bool

    @cached_property
    def lane(self) -> tuple[str, str, int]:
        """Compatibility, model and the code that it needs, which decide the lane."""
        return self.recipe.compatibility, self.recipe.model, self.recipe.needs_code

    @cached_property
    def rest_of_json(self) -> str:
        """The fields in JSON, without the prompt, the seeds and the opening brace."""
        return to_json(self.recipe.model_dump(mode="json", exclude={"prompt", "seeds"}))[1:]


class PlannedJob(NamedTuple):
    """The recipe of one prompt: a template, and the prompt and seeds; and where it comes from, see `origin_json`."""

    template: RecipeTemplate
    prompt: str
    seeds: tuple[int, ...]
    row: int | None = None
    kept: str = ""
    template_vars: str = ""

    @property
    def recipe(self) -> Recipe:
        return self.template.recipe.model_copy(update={"prompt": self.prompt, "seeds": self.seeds})

    @property
    def json(self) -> str:
        """The recipe in JSON."""
        seeds = ",".join(map(str, self.seeds))
        return f'{{"prompt":{to_json(self.prompt)},"seeds":[{seeds}],{self.template.rest_of_json}'

    @property
    def origin(self) -> str:
        """The origin in JSON; empty if there is none."""
        return origin_json(self.row, self.kept, self.template_vars)


def planners(plan: Plan, catalog: Catalog, find: FindImage = find_no_image) -> list["Planner"]:
    """One for each variant that the plan makes of a prompt."""
    templates = _template_cache()
    return [Planner(plan, catalog, find, variant, templates) for variant in variants(plan.matrix)]


def _template_cache() -> TextCache[RecipeTemplate]:
    return TextCache(
        MAX_TEMPLATE_BYTES,
        lambda template: TEMPLATE_BYTES + BYTES_PER_CHARACTER * _length_of_texts(template.recipe),
    )


def _length_of_texts(recipe: Recipe) -> int:
    return len(recipe.negative_prompt) + sum(map(len, recipe.style.model_dump().values() if recipe.style else ()))


class Planner:
    """Makes the recipes of one variant of a plan. `find` finds the images that lines name.

    Raises Invalid at once if the plan is wrong for every prompt.
    """

    def __init__(
        self,
        plan: Plan,
        catalog: Catalog,
        find: FindImage = find_no_image,
        variant: Variant | None = None,
        templates: TextCache[RecipeTemplate] | None = None,
    ) -> None:
        self.plan_of_batch = plan
        self._catalog = catalog
        self._find = find
        self._variant = variant or {}
        self._common = {"count": plan.images_per_prompt, **plan.defaults, **self._variant}
        self._templates = templates or _template_cache()
        self._default_template = self._full({"prompt": PLACEHOLDER}, 0).template

    def plan(self, fields: Mapping[str, Any], position: int) -> PlannedJob:
        """The recipe of the line with these fields, at this position. Raises Invalid, with an error for each field."""
        return self._fast(fields, position) or self._full(fields, position)

    def _fast(self, fields: Mapping[str, Any], position: int) -> PlannedJob | None:
        """By a template. None for a line that may be wrong."""
        prompt, seed = fields.get("prompt"), fields.get("seed")
        template = self._default_template if len(fields) == 1 else self._template_for(fields)
        if template is None or not _is_prompt(prompt, model := self._catalog.get(template.recipe.model)):
            return None
        if style := template.recipe.style:
            prompt = style.prompt(prompt)
            if not _is_prompt(prompt, model):
                return None
        if template.has_seeds:
            return PlannedJob(template, prompt, template.recipe.seeds) if seed is None else None
        if seed is not None and not _is_seed(seed):
            return None
        first = self._root_seed(position) if seed is None else seed
        return PlannedJob(template, prompt, seeds_from(first, template.recipe.count))

    def _template_for(self, fields: Mapping[str, Any]) -> RecipeTemplate | None:
        """The template of all lines with these fields, whatever the prompt and seed. None if the fields are wrong."""
        others = {**fields, "prompt": PLACEHOLDER}
        if "seed" in others:
            others["seed"] = None
        key = repr((self._variant, others))  # so that 1, 1.0 and True differ
        if found := self._templates.get(key):
            return found
        try:
            template = self._full(others, 0).template
        except Invalid:
            return None
        self._templates.put(key, template)
        return template

    def _full(self, fields: Mapping[str, Any], position: int) -> PlannedJob:
        """By resolving a draft, as for a single job."""
        if twice := self._variant.keys() & fields.keys():
            raise Invalid.of([FieldError(name, sentence("set_by_matrix")) for name in twice])
        common = {key: value for key, value in self._common.items() if key != "count" or "seeds" not in fields}
        draft = _draft({**common, **fields})
        recipe = resolve(draft, self._catalog, self._model, self._root_seed(position), self._find)
        has_seeds = draft.seeds is not None or draft.seed is not None
        return PlannedJob(RecipeTemplate(recipe, has_seeds), recipe.prompt, recipe.seeds)

    def _root_seed(self, position: int) -> int:
        return (self.plan_of_batch.seed + position * self.plan_of_batch.images_per_prompt) % (MAX_SEED + 1)

    @cached_property
    def _model(self) -> str:
        return str(self._common.get("model") or self._catalog.default)


def _is_prompt(value: object, model: Model) -> TypeGuard[str]:
    try:
        return not prompt_errors("prompt", PROMPT_TYPE.validate_python(value), model, empty_allowed=False)
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
