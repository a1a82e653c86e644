"""The families of models, read from `families.toml`: the facts that need no torch.

What a family's code does with them is in `worker.pipelines.families`. Knows no model.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("families.toml")
WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "tokenizer_2", "feature_extractor")


@dataclass(frozen=True)
class Guidance:
    """The argument of diffusers' call, and the value at which and below which nothing guides."""

    argument: str
    off: float


@dataclass(frozen=True)
class Distilled:
    """How a checkpoint tells that it needs no guidance, and the defaults of such a model."""

    file: str
    key: str
    value: bool
    value_if_missing: bool
    defaults: Mapping[str, Any]

    def describes(self, config: Mapping[str, Any]) -> bool:
        """Whether the content of `file` is that of a distilled model."""
        return bool(config.get(self.key, self.value_if_missing)) == self.value


@dataclass(frozen=True)
class Family:
    """One family. Sizes are in pixels; the head of `families.toml` says what each value means."""

    name: str
    code: str
    pipelines: tuple[str, ...]
    components: Mapping[str, tuple[str, ...]]
    denoiser: str
    tokenizer: str
    token_limit: int
    size_multiple: int
    schedulers: tuple[str, ...]
    negative_prompt: Literal["no", "optional"]
    guidance: Guidance
    weighted: bool
    sharing: Literal["any", "equal_length", "single"]
    modes: tuple[str, ...]
    defaults: Mapping[str, Any]
    optional: tuple[str, ...] = field(default=())
    call_needs: tuple[str, ...] = field(default=())
    channels: int | None = None
    distilled: Distilled | None = None  # None: nothing in the files tells

    @property
    def needed(self) -> tuple[str, ...]:
        """The components that every model of the family has."""
        return tuple(name for name in self.components if name not in self.optional)

    @property
    def with_weights(self) -> tuple[str, ...]:
        return tuple(name for name in self.components if name not in WITHOUT_WEIGHTS)


@cache
def families() -> Mapping[str, Family]:
    """All families by their names."""
    tables: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text("utf-8"))
    return {name: _family(name, _inherited(table, tables)) for name, table in tables.items()}


def of_pipeline(class_name: str | None) -> Family | None:
    """The family of a pipeline class of diffusers: the first that has it. None for any other class."""
    return next((family for family in families().values() if class_name in family.pipelines), None)


def _inherited(table: dict[str, Any], tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    own = {key: value for key, value in table.items() if key != "like"}
    return {**_inherited(tables[table["like"]], tables), **own} if "like" in table else own


def _family(name: str, table: dict[str, Any]) -> Family:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    components = {component: tuple(classes) for component, classes in table["components"].items()}
    defaults = {"scheduler": table["schedulers"][0], "token_limit": table["token_limit"], **table["defaults"]}
    named: dict[str, Any] = {"components": components, "guidance": Guidance(**table["guidance"]), "defaults": defaults}
    if distilled := table.get("distilled"):
        named["distilled"] = Distilled(**{**distilled, "defaults": {"guided": False, **distilled["defaults"]}})
    return Family(name=name, **{**table, **lists, **named})
