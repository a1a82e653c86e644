r"""Templates of prompts: `{红|蓝}色的__形状__` stands for several prompts. Pure; knows no files and no batches.

    {红|蓝}        a choice; choices nest, and an option may be empty
    {3::红|蓝}     with weights, which count where prompts are sampled; an option without one weighs 1
    __颜色__       a choice of the values of a wildcard, which are text; they may have weights, too
    \{ \} \| \_ \\ the character itself

All else is text. A template stands for all its combinations, the last choice changes fastest; or for samples, each
drawn for itself. How many prompts it makes, and how long they are, is known before any of them is made.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, product
from math import prod
from random import Random
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints, field_validator

from common.recipes import sentence
from common.sentences import Sentence

MAX_SAMPLES = 10_000
MAX_DEPTH = 10  # choices within choices
MAX_CHOICES = 100  # of one template
MAX_WEIGHT = 1000.0
MAX_LISTS, MAX_VALUES, MAX_VALUE_CHARACTERS = 200, 10_000, 50_000  # of all wildcards of a batch
SHOWN_COUNT = 10**15  # a number of combinations is shown up to here
SHOWN_CHARACTERS = 40  # of a template, in an error or a warning

WILDCARD_NAME = re.compile(r"[^\W_](?:[\w/-]{0,60}[^\W_])?")
TOKEN = re.compile(r"\\[{}|_\\]|[{}|]|__([^\W_](?:[\w/-]{0,60}?[^\W_])??)__")
WEIGHT = re.compile(r"\s{0,9}(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s{0,9}::")
SEVERAL = re.compile(r"\s{0,9}(?:\d{1,9}(?:-\d{0,9})?|-\d{1,9})\$\$")
CHOICE = re.compile(r"\{[^{}|]{0,200}+\|[^{}]{0,200}+\}")  # where a template is not asked for
LORA = re.compile(r"<lora:([^<>:]{1,100})(?::([0-9.]{1,9}))?>")

Value = Annotated[str, StringConstraints(strict=True, min_length=1)]


class TemplateError(ValueError):
    """What is wrong with a template; the sentence follows the name of the field."""

    def __init__(self, reason: Sentence) -> None:
        super().__init__(reason)
        self.reason = reason


class TemplatePrompt(NamedTuple):
    """A prompt of a template, and what was chosen, by the name of the wildcard or the number of the choice."""

    text: str
    variables: dict[str, str]


@dataclass(frozen=True)
class Option:
    weight: float
    parts: tuple["str | Choice", ...]

    @property
    def count(self) -> int:
        return prod(part.count for part in self.parts if isinstance(part, Choice))

    @property
    def size(self) -> int:
        return sum(len(part) if isinstance(part, str) else part.size for part in self.parts)


@dataclass(frozen=True)
class Options:
    """What a choice may choose."""

    all: tuple[Option, ...]

    @cached_property
    def count(self) -> int:
        return sum(option.count for option in self.all)

    @cached_property
    def size(self) -> int:
        return max(option.size for option in self.all)

    def draw(self, random: Random) -> Option:
        """By weight. `Random.random` is the one method that gives the same numbers in every version of Python."""
        place = bisect_right(self._weights, random.random() * self._weights[-1])
        return self.all[min(place, len(self.all) - 1)]

    @cached_property
    def _weights(self) -> list[float]:
        """Of each option and all before it."""
        return list(accumulate(option.weight for option in self.all))


@dataclass(frozen=True)
class Choice:
    """`name` is that of its variable."""

    name: str
    options: Options

    @property
    def count(self) -> int:
        return self.options.count

    @property
    def size(self) -> int:
        """Characters, at most: in the prompt and in the variables."""
        return len(self.name) + 2 * self.options.size


class Templates(BaseModel):
    """How a batch reads its prompts as templates: the values of wildcards, and how many samples of each prompt.

    Without `samples` all combinations.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: StrictInt | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    wildcards: dict[str, list[Value]] = Field(default_factory=dict, max_length=MAX_LISTS)

    @field_validator("wildcards")
    @classmethod
    def _check(cls, wildcards: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, values in wildcards.items():
            if not WILDCARD_NAME.fullmatch(name):
                raise ValueError(sentence("wildcard_name_wrong", name=name[:SHOWN_CHARACTERS]))
            if not values:
                raise ValueError(sentence("wildcard_empty", name=name))
            if nested := next(filter(_has_syntax, values), None):
                raise ValueError(sentence("wildcard_nested", name=name, value=nested[:SHOWN_CHARACTERS]))
        count = sum(map(len, wildcards.values()))
        characters = sum(len(value) for values in wildcards.values() for value in values)
        if count > MAX_VALUES or characters > MAX_VALUE_CHARACTERS:
            too_large = sentence(
                "wildcards_too_large",
                values=count,
                characters=characters,
                most_values=MAX_VALUES,
                most_characters=MAX_VALUE_CHARACTERS,
            )
            raise ValueError(too_large)
        for value in (value for values in wildcards.values() for value in values):
            _weighed(value)
        return wildcards

    def parse(self, text: str) -> Option:
        """The template of a text. Raises TemplateError."""
        return _Parser(text, self._values).parse()

    def count(self, template: Option) -> int:
        """How many prompts it makes."""
        return template.count if self.samples is None else self.samples

    def prompts(self, template: Option, seed: str) -> Iterator[TemplatePrompt]:
        """The prompts of a template. Equal seeds give equal samples."""
        if self.samples is None:
            yield from _combinations(template)
            return
        random = Random(int.from_bytes(sha256(seed.encode("utf-8", "surrogatepass")).digest()))
        for _ in range(self.samples):
            yield _sample(template, random)

    @cached_property
    def options(self) -> dict[str, Options]:
        """Those of each wildcard. Raises TemplateError for a wrong weight."""
        return {name: Options(tuple(map(_weighed, values))) for name, values in self.wildcards.items()}

    def _values(self, name: str) -> Options:
        if name not in self.wildcards:
            known = ", ".join(list(self.wildcards)[:20]) or "–"
            raise TemplateError(sentence("wildcard_unknown", name=name, names=known))
        return self.options[name]


def count_words(count: int) -> str:
    """`1,024`, and `more than 1,000,000,000,000,000` for any larger number."""
    return f"{count:,}" if count <= SHOWN_COUNT else f"more than {SHOWN_COUNT:,}"


def warnings(prompt: str, *, is_of_template: bool = False) -> tuple[Sentence, ...]:
    """What of a prompt looks like a syntax that is not read, and which option reads it."""
    found = list[Sentence]()
    if not is_of_template and (syntax := _find_syntax(prompt)):
        found.append(sentence("template_not_read", found=syntax[:SHOWN_CHARACTERS]))
    if "<lora:" in prompt and (use := LORA.search(prompt)):
        name, weight = use[1][:SHOWN_CHARACTERS], use[2] or "1"
        found.append(sentence("lora_not_read", found=use[0][:SHOWN_CHARACTERS], name=name, weight=weight))
    return tuple(found)


class _Parser:
    """Reads tokens from left to right. Its stack has the options of each choice that is open."""

    def __init__(self, text: str, wildcard: Callable[[str], Options]) -> None:
        self._text = text
        self._wildcard = wildcard
        self._names: dict[str, int] = {}
        self._groups = self._choices = 0

    def parse(self) -> Option:
        text, at = self._text, 0
        open_at, names = list[int](), list[str]()
        options: list[list[Option]] = []
        weights, parts = [1.0], [list[str | Choice]()]
        for token in TOKEN.finditer(text):
            if token.start() > at:
                parts[-1].append(text[at : token.start()])
            at = token.end()
            if token[0] == "{":
                if len(open_at) == MAX_DEPTH:
                    raise TemplateError(sentence("template_too_deep", place=self._place(token.start()), most=MAX_DEPTH))
                open_at.append(token.start())
                names.append(self._number())
                options.append([])
            elif (token[0] == "|" and open_at) or token[0] == "}":
                if not open_at:
                    raise TemplateError(sentence("template_not_open", place=self._place(token.start())))
                options[-1].append(Option(weights.pop(), tuple(parts.pop())))
                if token[0] == "}":
                    open_at.pop()
                    parts[-1].append(Choice(names.pop(), Options(tuple(options.pop()))))
            elif token[1]:
                parts[-1].append(Choice(self._name(token[1]), self._wildcard(token[1])))
            else:
                parts[-1].append(token[0][-1])
            if open_at and token[0] in ("{", "|"):
                weight, at = self._weight(at)
                weights.append(weight)
                parts.append([])
        if open_at:
            raise TemplateError(sentence("template_not_closed", place=self._place(open_at[-1])))
        return Option(1.0, (*parts[0], text[at:]))

    def _weight(self, at: int) -> tuple[float, int]:
        """The weight of the option that begins here, and where its text begins."""
        if SEVERAL.match(self._text, at):
            raise TemplateError(sentence("template_several", place=self._place(at)))
        found = WEIGHT.match(self._text, at)
        return (_checked_weight(found[1]), found.end()) if found else (1.0, at)

    def _number(self) -> str:
        self._groups += 1
        return self._name(str(self._groups))

    def _name(self, name: str) -> str:
        """The name of a variable; the second use of a wildcard is another variable."""
        self._choices += 1
        if self._choices > MAX_CHOICES:
            raise TemplateError(sentence("template_too_many_choices", most=MAX_CHOICES))
        self._names[name] = uses = self._names.get(name, 0) + 1
        return name if uses == 1 else f"{name}_{uses}"

    def _place(self, at: int) -> str:
        return self._text[at : at + 20]


def _find_syntax(prompt: str) -> str | None:
    if "{" not in prompt and "__" not in prompt:
        return None
    if choice := CHOICE.search(prompt):
        return choice[0]
    return next((token[0] for token in TOKEN.finditer(prompt) if token[1]), None)


def _has_syntax(value: str) -> bool:
    return any(token[0] in "{}" or token[1] for token in TOKEN.finditer(value))


def _weighed(value: str) -> Option:
    """A value of a wildcard, which may begin with a weight."""
    found = WEIGHT.match(value)
    return Option(_checked_weight(found[1]), (value[found.end() :],)) if found else Option(1.0, (value,))


def _checked_weight(number: str) -> float:
    weight = float(number)
    if not 0 < weight <= MAX_WEIGHT:
        raise TemplateError(sentence("template_weight", weight=weight, most=MAX_WEIGHT))
    return weight


def _combinations(option: Option) -> Iterator[TemplatePrompt]:
    choices = [_of_part(part) for part in option.parts]
    for chosen in product(*choices):
        variables: dict[str, str] = {}
        for one in chosen:
            variables.update(one.variables)
        yield TemplatePrompt("".join(one.text for one in chosen), variables)


def _of_part(part: str | Choice) -> Sequence[TemplatePrompt]:
    if isinstance(part, str):
        return [TemplatePrompt(part, {})]
    return [_chosen(part, one) for option in part.options.all for one in _combinations(option)]


def _sample(option: Option, random: Random) -> TemplatePrompt:
    texts, variables = list[str](), dict[str, str]()
    for part in option.parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        found = _chosen(part, _sample(part.options.draw(random), random))
        texts.append(found.text)
        variables.update(found.variables)
    return TemplatePrompt("".join(texts), variables)


def _chosen(choice: Choice, one: TemplatePrompt) -> TemplatePrompt:
    return TemplatePrompt(one.text, {choice.name: one.text, **one.variables})
