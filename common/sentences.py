"""What the farm says to people: a code, its parameters, and the English sentence that they make.

Each room has one table, its `sentences.toml`, and says nothing else; a test holds tables and calls together. Knows no
language but English: a translation is a second table with the same codes. `printable` is for text of users within it.
"""

import json
import tomllib
import unicodedata
from collections.abc import Callable, Mapping
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


# Controls (among them the ESC of a terminal's commands and the newline), invisible characters and those that change the
# direction of text, halves of surrogate pairs, and separators of lines.
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINER, EMOJI_STYLE = "\u200d", "\ufe0f"  # within an emoji such as 👨‍👩‍👧, behind a symbol


def printable(text: object) -> str:
    """The text on one line, as a terminal shows it: each character that it would obey or hide is escaped (`\\x1b`)."""
    return _escape(str(text), lambda character: character.encode("unicode_escape").decode())


def printable_json(document: str) -> str:
    """The same for a JSON document of one line: the same value, with these characters as JSON writes them."""
    return _escape(document, lambda character: json.dumps(character)[1:-1])


def _escape(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    before = " " + text
    return "".join(escape(c) if is_unsafe(c, last) else c for last, c in zip(before, text, strict=False))


def is_unsafe(character: str, before: str) -> bool:
    if character == JOINER and (before == EMOJI_STYLE or unicodedata.category(before) in ("So", "Sk")):
        return False
    return unicodedata.category(character) in UNSAFE
