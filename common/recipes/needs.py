"""The least CODE that understands a stored value, so that older code leaves it alone. Pure.

A model that is stored as JSON has a table `SINCE`: for each field that came after CODE 1, a function of its value that
gives the CODE which first understood it. (A new value of an old field can be named in the same way.) Such a field has a
default, and at its default it is not stored: then any code understands it.
"""

from collections.abc import Callable, Mapping
from typing import Any

Since = Mapping[str, Callable[[Any], int]]


def needs_code(since: Since, fields: Mapping[str, Any]) -> int:
    """What these fields need, as they are stored."""
    return max((least(fields[name]) for name, least in since.items() if name in fields), default=1)
