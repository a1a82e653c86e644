"""The columns of a file of prompts: which field of a recipe a name means, and what the text of a cell is worth.

The one table of names that people use, Chinese ones above all. The keys of JSON lines go by it too.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from common.errors import Invalid
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
    "format": ("格式",),
}
ALIASES = {name: field for field, names in NAMES.items() for name in (field, *names)}

INTEGERS = {"width", "height", "steps", "count", "seed"}
FLOATS = {"guidance", "strength"}
LISTS = {"seeds", "lora"}

MAX_CACHED_NAMES = 10_000  # that are remembered: a file may have as many of them as it likes
MAX_SHOWN = 5  # names of columns that are wrong


@lru_cache(MAX_CACHED_NAMES)
def field_of(name: str) -> str:
    """The field that is meant; the name as it is where it means none. Case, spaces and hyphens are free."""
    plain = re.sub(r"[\s_-]+", "_", name.strip()).casefold()
    return ALIASES.get(plain, name)


def fields_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a row gives, by the fields that are meant. Raises Invalid when two of its names mean the same."""
    fields = {field_of(name): value for name, value in given.items()}
    if len(fields) < len(given):
        raise Invalid(f"{_first_duplicate(map(field_of, given))} is there twice, by different names.")
    return fields


def columns_of(header: Sequence[str]) -> tuple[str, ...]:
    """The fields of the columns of a table; empty for one without a name. Raises Invalid where they are not clear."""
    columns = tuple(field_of(name) if name.strip() else "" for name in header)
    named = [column for column in columns if column]
    if "prompt" not in named:
        raise Invalid(f"no column is called prompt (or {', '.join(NAMES['prompt'])}); there are {_quote(header)}.")
    if strange := [column for column in named if column not in FIELDS]:
        raise Invalid(f"{_quote(strange)} is no field of a recipe; those are {', '.join(FIELDS)}.")
    if len(set(named)) < len(named):
        raise Invalid(f"two columns mean {_first_duplicate(named)}.")
    return columns


def parse_cell(field: str, cell: str) -> Any:
    """What a cell says. Where that is nothing of the kind it stays text, and the recipe has to say what is wrong."""
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
        except ValueError:
            return cell
    return cell


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:MAX_SHOWN]) + more


def _first_duplicate(fields: Iterable[str]) -> str:
    """The first that is there twice."""
    return next(field for field, count in Counter(fields).items() if count > 1)
