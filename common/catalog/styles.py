"""Styles: texts that a recipe adds to its prompts. Their entries in the catalogue, and the style of a recipe.

    prefix + prompt + suffix          negative prompt + ", " + the style's negative

`StyleUse` is the one place that completes prompts. A recipe has the completed ones, so all that reads a prompt (policy,
tokens, keys, pipelines) reads what is drawn, and a later change of the catalogue changes no recipe.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.catalog import sentence

PLAIN = "plain"  # the name of no style, where one must be named: in a matrix, or against a default
MAX_CHARACTERS = 1000  # of each text
NAME = re.compile(r"[\w.-]{1,100}")  # commas, colons and equals signs have a meaning on the command line
BETWEEN = ", "  # two negative prompts


class StyleUse(BaseModel):
    """The style of a recipe: what it added to the prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    prefix: str = ""
    suffix: str = ""
    negative: str = ""

    def prompt(self, written: str) -> str:
        """The prompt that is drawn."""
        return f"{self.prefix}{written}{self.suffix}"

    def negative_prompt(self, written: str) -> str:
        return BETWEEN.join(filter(None, (written, self.negative)))

    def written_prompt(self, drawn: str) -> str:
        """The prompt without what the style added."""
        return drawn.removeprefix(self.prefix).removesuffix(self.suffix)

    def written_negative_prompt(self, drawn: str) -> str:
        return drawn.removesuffix(self.negative).removesuffix(BETWEEN) if self.negative else drawn


@dataclass(frozen=True)
class Style:
    """One entry of the catalogue."""

    name: str
    prefix: str = ""
    suffix: str = ""
    negative: str = ""
    description: str = ""

    @property
    def use(self) -> StyleUse:
        return StyleUse(name=self.name, prefix=self.prefix, suffix=self.suffix, negative=self.negative)


def read_style(name: str, entry: Mapping[str, Any]) -> Style:
    """The style of an entry. Raises TypeError for a wrong one."""
    if name == PLAIN:
        raise TypeError(sentence("style_reserved", style=name))
    if not NAME.fullmatch(name):
        raise TypeError(sentence("style_name_wrong", style=name))
    if not isinstance(entry, Mapping):
        raise TypeError(sentence("style_empty", style=name))
    for key, value in entry.items():
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS or "\0" in value:
            raise TypeError(sentence("style_text_wrong", style=name, key=key, most=MAX_CHARACTERS))
    style = Style(name=name, **entry)
    if not (style.prefix or style.suffix or style.negative):
        raise TypeError(sentence("style_empty", style=name))
    return style
