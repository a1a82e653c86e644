"""The columns of a file of prompts: what each name means, which are kept, and what is left out. Pure.

Has the one table of the names that people use, Chinese ones above all, which is that of the keys of JSON Lines too. A
reader yields rows as mappings from a column's name to its JSON value; `Columns` makes the fields of a recipe of them,
and the values that travel with the job. What is wrong with all rows alike is one error of the file (`WrongColumns`).

A column means a field because `columns` says so, or else by its name. Every other one is kept if `keep` names it, or
left out if `keep` names others. Without `keep` it is an error, so that a misspelt field is not lost in silence; but an
index that pandas wrote is left out, and so are the pictures of a data set.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from common.errors import Invalid
from common.prompt_files import sentence
from common.prompt_files.conversions import value_of
from common.recipes.recipe import Draft
from common.sentences import printable

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
# Names that other programs and data sets use. They mean the field unless another column has one of the names above.
OTHER_NAMES = {
    "prompt": ("text", "caption", "prompts", "captions", "positive_prompt", "文本", "文字", "图片描述"),
    "negative_prompt": ("negative", "neg_prompt", "反向词", "负面词"),
    "model": ("model_name", "checkpoint"),
    "steps": ("step", "num_inference_steps", "sampling_steps"),
    "scheduler": ("sampler", "sampler_name"),
    "guidance": ("cfg", "cfg_scale", "guidance_scale"),
    "count": ("num_images", "num_images_per_prompt"),
    "strength": ("denoising_strength",),
}
ALIASES = {name: field for field, names in NAMES.items() for name in (field, *names)}
OTHER_ALIASES = {name: field for field, names in OTHER_NAMES.items() for name in names}

INDEX = re.compile(r"unnamed: ?[0-9]{1,9}(?:\.[0-9]{1,9})?|__index_level_[0-9]{1,9}__")  # as pandas names one
PICTURE_KEYS = {"bytes", "path"}  # of the `datasets` library

MAX_CACHED_NAMES = 10_000
MAX_MEANINGS = 1000  # remembered of one file: JSON Lines may name other columns in each line
MAX_REMEMBERED = 10_000  # characters of the names of a row
MAX_NAME = 100  # characters; no longer name means a field, and none is remembered
MAX_SHOWN = 5  # columns in an error
MAX_USES = 200

Keep = tuple[str, ...] | Literal["all"] | None


class WrongColumns(Invalid):
    """The columns of the file are wrong, so all its rows are."""


class UnknownColumns(WrongColumns):
    """Columns mean no field, and nothing says that they are to be kept."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        quoted, first = _quote(self.names), _shown(self.names[0])
        keep = ",".join(map(_shown, self.names[:MAX_SHOWN]))
        super().__init__(
            sentence("unknown_columns", columns=quoted, keep=keep, first=first, fields=", ".join(FIELDS)),
        )


class Use(NamedTuple):
    """What a column was taken for: a field, a kept value, both, or neither. `is_index`: of pandas."""

    column: str
    field: str | None
    is_kept: bool
    is_index: bool


class Meaning(NamedTuple):
    """What the columns of a row mean."""

    fields: tuple[tuple[str, str], ...]  # field and column
    kept: tuple[str, ...]
    unknown: tuple[str, ...]
    uses: tuple[Use, ...]


class Columns:
    """What the columns of one file mean.

    `named`: the column of a field, where its name does not say so. `uses` remembers what each column was taken for.
    """

    def __init__(self, named: Mapping[str, str] | None = None, keep: Keep = None) -> None:
        self._named = {field: name.strip() for field, name in (named or {}).items()}
        self._keep = tuple(name.strip() for name in keep) if isinstance(keep, tuple) else keep
        self._index = frozenset[str]()
        self._meanings = dict[tuple[str, ...], Meaning]()
        self.uses = dict[str, Use]()

    def learn(self, header: tuple[str, ...], index: tuple[str, ...] = ()) -> None:
        """Check the names of a table's columns. `index`: those that are an index, as the file itself says.

        Raises WrongColumns if one is absent, or there twice.
        """
        names, self._index = tuple(name.strip() for name in header), frozenset(index)
        asked = [*self._named.values(), *(self._keep if isinstance(self._keep, tuple) else ())]
        if absent := [name for name in asked if name not in names]:
            raise WrongColumns(sentence("columns_absent", absent=_quote(absent), columns=_quote(names)))
        if twice := next((name for name, count in Counter(names).items() if count > 1 and name), None):
            raise WrongColumns(sentence("column_twice", field=field_of(twice)[:40]))
        try:
            meaning = self._meaning(header)
        except Invalid as error:
            raise WrongColumns(sentence("column_twice", field=error.message.params["field"])) from None
        if "prompt" not in dict(meaning.fields):
            known = ", ".join((*NAMES["prompt"], *OTHER_NAMES["prompt"][:2]))
            raise WrongColumns(
                sentence("no_prompt_column", names=known, columns=_quote(names), first=_shown("".join(names[:1])))
            )

    def read(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields and the kept values of a row. Raises Invalid with a reason that follows `Line 7: `."""
        meaning = self._meaning(tuple(row))
        if meaning.unknown and (unknown := [name for name in meaning.unknown if not _is_nothing(row[name])]):
            raise UnknownColumns(unknown)
        values = ((field, value_of(field, row[name])) for field, name in meaning.fields)
        fields = {field: value for field, value in values if value is not None}
        return fields, {name.strip(): self._kept_value(row[name]) for name in meaning.kept}

    def _kept_value(self, value: Any) -> Any:
        """NaN is none, and so is a picture where nobody asked for it by its name."""
        is_left_out = value != value or (self._keep == "all" and _is_picture(value))
        return None if is_left_out else value

    def are_numbered(self, header: tuple[str, ...]) -> bool:
        """Whether the columns are called 1, 2, 3 …, and the first line of the table is not their names."""
        names = {name.strip() for name in header}
        return any(name.isdecimal() and name not in names for name in self._named.values())

    def knows(self, name: str) -> bool:
        """Whether a column of this name means a field, or is kept by its name."""
        asked = (*self._named.values(), *(self._keep if isinstance(self._keep, tuple) else ()))
        return name.strip() in asked or field_of(name) in FIELDS

    def _meaning(self, names: tuple[str, ...]) -> Meaning:
        if (found := self._meanings.get(names)) is None:
            found = self._find_meaning(names)
            if sum(map(len, names)) <= MAX_REMEMBERED:
                if len(self._meanings) >= MAX_MEANINGS:
                    self._meanings.clear()
                self._meanings[names] = found
            for use in found.uses:
                if len(self.uses) < MAX_USES:
                    column = use.column[:MAX_NAME]
                    self.uses.setdefault(column, use._replace(column=column))
        return found

    def _find_meaning(self, names: tuple[str, ...]) -> Meaning:
        stripped = {name.strip(): name for name in names}
        fields = {field: stripped[name] for field, name in self._named.items() if name in stripped}
        taken = set(fields.values())
        for aliases in (ALIASES, OTHER_ALIASES):
            found = [(field, name) for name in names if name not in taken and (field := _meant(name, aliases))]
            found = [(field, name) for field, name in found if field not in self._named and field not in fields]
            fields |= self._one_each(found)
            taken = set(fields.values())
        others = [name for name in names if name not in taken]
        index = [name for name in others if self._is_index(name, names)]
        kept = self._kept(names, others, index)
        unknown = [name for name in others if name not in index] if self._keep is None else []
        by_column = {name: field for field, name in fields.items()}
        uses = (Use(name, by_column.get(name), name in kept, name in index) for name in names)
        return Meaning(tuple(fields.items()), tuple(kept), tuple(unknown), tuple(uses))

    def _one_each(self, found: Sequence[tuple[str, str]]) -> dict[str, str]:
        """The column of each field. One that is kept yields to another one. Raises Invalid if two are left."""
        counts = Counter(field for field, _ in found)
        kept = self._keep if isinstance(self._keep, tuple) else ()
        left = [(field, name) for field, name in found if counts[field] == 1 or name.strip() not in kept]
        if twice := next((field for field, count in Counter(field for field, _ in left).items() if count > 1), None):
            raise Invalid(sentence("key_twice", field=twice))
        return dict(left)

    def _kept(self, names: tuple[str, ...], others: Sequence[str], index: Sequence[str]) -> list[str]:
        if self._keep == "all":
            return [name for name in others if name not in index or not _is_anonymous(name)]
        return [name for name in names if name.strip() in (self._keep or ())]

    def _is_index(self, name: str, names: tuple[str, ...]) -> bool:
        """A column without a name is one if only such columns are before it."""
        if name in self._index or INDEX.fullmatch(name.strip().casefold()):
            return True
        return not name.strip() and all(_is_anonymous(before) for before in names[: names.index(name)])


def field_of(name: str) -> str:
    """The field that a name means; the name itself if it means none. Ignores case, spaces, hyphens and underscores."""
    return _meant(name, ALIASES) or _meant(name, OTHER_ALIASES) or name


def _meant(name: str, aliases: Mapping[str, str]) -> str | None:
    return aliases.get(_plain(name)) if len(name) <= MAX_NAME else None


@lru_cache(MAX_CACHED_NAMES)
def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def _is_anonymous(name: str) -> bool:
    return not name.strip() or INDEX.fullmatch(name.strip().casefold()) is not None


def _is_nothing(value: Any) -> bool:
    """Whether nothing that a person wrote is lost with it: an empty cell, or a picture in a table of them."""
    return value is None or _is_picture(value)


def _is_picture(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == PICTURE_KEYS


def _shown(name: str) -> str:
    """A name within an option: an error is stored, and shown in a terminal."""
    return printable(name[:40])


def _quote(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:MAX_SHOWN]) + more
