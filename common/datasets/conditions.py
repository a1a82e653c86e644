"""The condition of a dataset: which rows of its batches are in it. Pure; it is never a part of a statement.

    status = 'stored' and (steps >= 20 or meta.kind in ('cat', 'dog')) and meta.note is null

Three values, as in SQL: what compares with null is neither true nor false, and only where the whole is true is a row
chosen. A kept value has no type of its own: it is compared as a number with a number, and as a text with a text.
"""

import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from common.datasets import sentence
from common.datasets.columns import META

MAX_LENGTH, MAX_DEPTH = 2_000, 20  # characters; parentheses and `not`s inside each other
TEXTS, NUMBERS, FLAGS = (str,), (int, float), (bool,)  # of values that a column of each type is compared with
KINDS = {"string": TEXTS, "bool_": FLAGS} | dict.fromkeys(("int32", "int64", "uint64", "float64"), NUMBERS)
OF_FILES = ("model_revision", "worker_class", "versions", "original_sha256")  # known when a picture has been read
SIGNS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TOKEN = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|[^\W\d][\w.]*|[-+]?\d[\w.]*|<=|>=|<>|!=|==|\S""")

Value = str | int | float | bool
Test = Callable[[Mapping[str, Any]], bool | None]  # of a row by column
T = TypeVar("T")


class Token(NamedTuple):
    text: str
    at: int  # the number of its first character, from 1

    @property
    def word(self) -> str:
        return self.text.lower()


@lru_cache(maxsize=64)
def parse(text: str, columns: tuple[tuple[str, str], ...]) -> Test:
    """The condition of a text. `columns`: names and types of those that all rows have. Raises ValueError."""
    if len(text) > MAX_LENGTH:
        raise ValueError(sentence("where_too_long", limit=MAX_LENGTH))
    return _Parser(text, dict(columns)).whole()


class _Parser:
    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self._tokens = [Token(found[0], found.start() + 1) for found in TOKEN.finditer(text)]
        self._tokens.append(Token("", len(text) + 1))
        self._columns = columns
        self._depth = -1  # parentheses and `not`s around what is read

    def whole(self) -> Test:
        test = self._any()
        if self._tokens[0].text:
            raise self._unexpected()
        return test

    def _any(self) -> Test:
        tests = self._separated("or", self._all)
        return tests[0] if len(tests) == 1 else lambda row: _not(_all(_not(test(row)) for test in tests))

    def _all(self) -> Test:
        tests = self._separated("and", self._one)
        return tests[0] if len(tests) == 1 else lambda row: _all(test(row) for test in tests)

    def _one(self) -> Test:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(sentence("where_too_deep", limit=MAX_DEPTH))
        if self._took("not"):
            negated = self._one()
            test: Test = lambda row: _not(negated(row))  # noqa: E731
        elif self._took("("):
            test = self._any()
            self._take(")")
        else:
            test = self._comparison()
        self._depth -= 1
        return test

    def _comparison(self) -> Test:
        name = self._column()
        if self._took("is"):
            is_wanted = not self._took("not")
            self._take("null")
            return lambda row: (column(row, name) is None) == is_wanted
        if self._took("not"):
            self._take("in")
            among = self._among(name)
            return lambda row: _not(among(row))
        if self._took("in"):
            return self._among(name)
        if not (compare := SIGNS.get(self._tokens[0].text)):
            raise self._unexpected()
        self._tokens.pop(0)
        return _compared(name, compare, self._value(name))

    def _among(self, name: str) -> Test:
        self._take("(")
        tests = [_compared(name, operator.eq, value) for value in self._separated(",", lambda: self._value(name))]
        self._take(")")
        return lambda row: _not(_all(_not(test(row)) for test in tests))

    def _column(self) -> str:
        token = self._tokens.pop(0)
        quoted = len(token.text) > 2 and token.text[0] == token.text[-1] == '"'
        name = token.text[1:-1] if quoted else token.text
        if not quoted and not name[:1].isidentifier():
            raise self._unexpected(token)
        if name in OF_FILES:
            raise ValueError(sentence("where_of_file", column=name))
        if name not in self._columns and not (name.startswith(META) and name != META):
            raise ValueError(sentence("where_column_unknown", column=name, columns=", ".join(self._columns)))
        return name

    def _value(self, name: str) -> Value:
        token = self._tokens.pop(0)
        value = _literal(token.text)
        if value is None:
            raise self._unexpected(token)
        wanted = KINDS.get(self._columns.get(name, ""))
        if wanted and type(value) not in wanted:
            raise ValueError(sentence("where_kind", column=name, kind=self._columns[name], value=token.text))
        return value

    def _separated(self, separator: str, parse: Callable[[], T]) -> list[T]:
        found = [parse()]
        while self._took(separator):
            found.append(parse())
        return found

    def _took(self, word: str) -> bool:
        is_next = self._tokens[0].word == word
        if is_next:
            self._tokens.pop(0)
        return is_next

    def _take(self, word: str) -> None:
        if not self._took(word):
            raise self._unexpected()

    def _unexpected(self, token: Token | None = None) -> ValueError:
        token = token or self._tokens[0]
        if not token.text:
            return ValueError(sentence("where_ends"))
        return ValueError(sentence("where_unexpected", found=token.text[:40], at=token.at))


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; a kept one has `meta.` before its name."""
    return (row.get("meta") or {}).get(name.removeprefix(META)) if name.startswith(META) else row.get(name)


def _literal(text: str) -> Value | None:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return {"true": True, "false": False}.get(text.lower(), _number(text) if text[:1] in "+-0123456789" else None)


def _compared(name: str, compare: Callable[[Any, Any], bool], value: Value) -> Test:
    def test(row: Mapping[str, Any]) -> bool | None:
        found = _like(column(row, name), value)
        return None if found is None else compare(found, value)

    return test


def _like(found: Any, value: Value) -> Value | None:
    """A value of a row as one that can be compared with this one. None where it cannot."""
    if isinstance(value, bool):
        return found if isinstance(found, bool) else {"true": True, "false": False}.get(str(found).lower())
    if isinstance(value, str):
        return _text(found)
    if isinstance(found, bool):
        return None
    return _number(found) if isinstance(found, str) else found if isinstance(found, int | float) else None


def _text(found: Any) -> str | None:
    if isinstance(found, bool):
        return str(found).lower()
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    return str(found) if isinstance(found, str | int | float) else None


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _all(values: Any) -> bool | None:
    found = set(values)
    return False if False in found else None if None in found else True
