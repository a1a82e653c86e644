"""What the farm says to people: a code, its parameters, and the English sentence that they make.

Each room has one table, its `sentences.toml`, and says nothing else; a test holds tables and calls together. Knows no
language but English: a translation is a second table with the same codes.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path


class Sentence(str):
    """A sentence that knows its `code` and `params`. Equal to its text, so it can be stored and sent as it is."""

    __slots__ = ("code", "params")

    code: str
    params: Mapping[str, object]

    def __new__(cls, text: str, code: str, params: Mapping[str, object]) -> "Sentence":
        sentence = super().__new__(cls, text)
        sentence.code = code
        sentence.params = params
        return sentence

    def __getnewargs__(self) -> tuple[str, str, Mapping[str, object]]:  # type: ignore[override]
        return str(self), self.code, self.params


class Sentences:
    """The table of one room: `sentence("too_small", side=8)` fills the text of that code in."""

    def __init__(self, room: str) -> None:
        """`room` is the `__file__` of a room's `__init__`; the table lies beside it, in `sentences.toml`.

        A text has the parameters of its code in braces, with formats as `str.format` takes them.
        """
        self.texts: dict[str, str] = tomllib.loads(Path(room).with_name("sentences.toml").read_text(encoding="utf-8"))

    def __call__(self, code: str, /, **params: object) -> Sentence:
        """Raises KeyError for a code or a parameter that the table does not have."""
        return Sentence(self.texts[code].format_map(params), code, params)
