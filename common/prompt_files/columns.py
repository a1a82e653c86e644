"""The columns of a file of prompts: the field of a recipe that a name means, and the value of a cell's text. Pure.

Has the one table of the names that people use, Chinese ones above all, which is that of the keys of JSON Lines too.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from common.errors import Invalid
from common.prompt_files import sentence
from common.recipes.recipe import Draft

FIELDS = tuple(Draft.model_fields)

NAMES = {
    "prompt": ("提示词", "提示", "正向提示词", "正面提示词", "描述"),
    "negative_prompt": ("反向提示词", "负面提示词", "负向提示词", "反面提示词"),
    "model": ("模型",),
    "width": ("宽", "宽度"),
    "height": ("高", "高度"),
    "steps": ("步数", "采样步数", "迭代步数"),
    "scheduler": ("采样器", "调度器", "采样方法"),
    "guidance": ("引导", "引导系数", "提示词引导系数", "提示词相关性"),
    "count": ("数量", "张数"),
    "seed": ("种子", "随机种子"),
    "seeds": ("种子列表",),
    "mode": ("模式",),
    "source": ("原图", "源图"),
    "mask": ("蒙版", "遮罩"),
    "strength": ("强度", "重绘强度", "重绘幅度"),
    "lora": (),
    "style": ("风格", "样式", "画风"),
    "format": ("格式",),
}
ALIASES = {name: field for field, names in NAMES.items() for name in (field, *names)}

INTEGERS = {"width", "height", "steps", "count", "seed"}
FLOATS = {"guidance", "strength"}
LISTS = {"seeds", "lora"}

MAX_CACHED_NAMES = 10_000
MAX_NAME = 100  # characters; no longer name means a field, and none is remembered
MAX_SHOWN = 5  # columns in an error


def field_of(name: str) -> str:
    """The field that a name means; the name itself if it means none. Ignores case, spaces, hyphens and underscores."""
    return _field_of(name) if len(name) <= MAX_NAME else name


@lru_cache(MAX_CACHED_NAMES)
def _field_of(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "_", name.strip()).casefold()
    return ALIASES.get(plain, name)


def fields_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row by the fields that its names mean. Raises Invalid if two names mean the same field."""
    fields = {field_of(name): value for name, value in given.items()}
    if len(fields) < len(given):
        raise Invalid(sentence("key_twice", field=_first_duplicate(map(field_of, given))))
    return fields


def columns_of(header: Sequence[str]) -> tuple[str, ...]:
    """The fields of the columns of a table; "" for a column without a name.

    Raises Invalid if there is no prompt, a name that means no field, or a field twice.
    """
    columns = tuple(field_of(name) if name.strip() else "" for name in header)
    named = [column for column in columns if column]
    if "prompt" not in named:
        raise Invalid(sentence("no_prompt_column", names=", ".join(NAMES["prompt"]), columns=_quote(header)))
    if unknown := [column for column in named if column not in FIELDS]:
        raise Invalid(sentence("unknown_columns", columns=_quote(unknown), fields=", ".join(FIELDS)))
    if len(set(named)) < len(named):
        raise Invalid(sentence("column_twice", field=_first_duplicate(named)))
    return columns


def parse_cell(field: str, cell: str) -> Any:
    """The value of a cell. Text that is no value of the field stays text; the checks of the recipe refuse it."""
    if field in INTEGERS and (whole := re.fullmatch(r"([+-]?\d{1,30})(?:\.0*)?", cell)):
        return int(whole[1])
    if field in FLOATS:
        try:
            return float(cell)
        except ValueError:
            return cell
    if field in LISTS:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:MAX_SHOWN]) + more


def _first_duplicate(fields: Iterable[str]) -> str:
    return next(field for field, count in Counter(fields).items() if count > 1)
