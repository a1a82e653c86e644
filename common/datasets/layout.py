"""The layout of a dataset: its plan, the names of its files, its columns, and the split of a prompt. Pure values.

The exporter writes by it and `huafang dataset verify` checks by it. Reads no file, knows no table.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.datasets import sentence
from common.recipes.needs import Since, needs_code
from common.recipes.origin import TYPES, Kinds, cell_value, to_json
from common.recipes.recipe import Recipe, canonical_json

PLAN_SINCE: Since = {}  # fields of a plan that not all code knows
COLUMNS_SINCE = 9  # the CODE since which a dataset has all COLUMNS, and what its rows keep
FORMAT = 1  # the version of the layout; a part of every plan's digest
SHARD_IMAGES = 10_000
SHARD_BYTES = 1_000_000_000
MAX_SPLITS = 8
REMAINDER = "train"  # the split that takes what the named splits leave

FOLDERS = ("data", "metadata", "_state", "licences")
README, MANIFEST, SUMS, SAMPLES = "README.md", "manifest.json", "SHA256SUMS", "samples.jpg"
TOP_LEVEL_FILES = (README, MANIFEST, SUMS, SAMPLES)
COLUMNS_OF_CODE_8 = {  # name → type, a name of both Arrow's and the `datasets` library's
    **dict.fromkeys(("key", "image_id", "job_id"), "string"),
    "index": "int32",
    **dict.fromkeys(("prompt", "negative_prompt", "model", "model_revision", "scheduler"), "string"),
    "steps": "int32",
    "guidance": "float64",
    "seed": "uint64",
    **dict.fromkeys(("width", "height"), "int32"),
    **dict.fromkeys(("format", "sha256", "status", "error_code", "worker_class", "versions", "created_at"), "string"),
    "render_ms": "int32",
    **dict.fromkeys(("licence", "split"), "string"),
}
COLUMNS = {**COLUMNS_OF_CODE_8, "row": "int64"}
TEMPLATE_VARS = "template_vars"
META = "meta."  # in tables, in front of the names of what rows keep
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}

Layout = Literal["webdataset", "imagefolder", "parquet"]
Row = dict[str, Any]  # by column; `meta` and `template_vars` are objects


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset, the same in all its shards. `kinds`: of what its rows keep, by name."""

    fixed: Mapping[str, str] = field(default_factory=lambda: COLUMNS)
    kinds: Kinds = field(default_factory=dict)
    has_template_vars: bool = False

    @property
    def types(self) -> dict[str, str]:
        """The columns of the tables: name → type."""
        kept = {f"{META}{name}": TYPES[kind or "string"] for name, kind in self.kinds.items()}
        return {**self.fixed, **kept, **({TEMPLATE_VARS: "string"} if self.has_template_vars else {})}

    def sample(self, row: Row) -> Row:
        """A row beside its image: what it keeps is an object."""
        found = {name: row[name] for name in self.fixed}
        if self.kinds:
            kept = row["meta"]
            found["meta"] = {name: cell_value(kind, kept.get(name)) for name, kind in self.kinds.items()}
        return found | ({TEMPLATE_VARS: _as_text(row[TEMPLATE_VARS])} if self.has_template_vars else {})

    def cells(self, row: Row) -> Row:
        """A row of a table. Also of what `sample` returned."""
        found = {name: row[name] for name in self.fixed}
        kept = row.get("meta") or {}
        found |= {f"{META}{name}": cell_value(kind, kept.get(name)) for name, kind in self.kinds.items()}
        if self.has_template_vars:
            found[TEMPLATE_VARS] = _as_text(row.get(TEMPLATE_VARS))
        return found


def _as_text(value: Any) -> str | None:
    """An object whose keys differ from row to row: libraries load it as text only."""
    return value if value is None or isinstance(value, str) else to_json(value)


def columns_of_manifest(manifest: Mapping[str, Any]) -> Columns:
    """The columns of the dataset with this manifest; that of older code does not name them."""
    types = manifest.get("columns", COLUMNS_OF_CODE_8)
    fixed = {name: kind for name, kind in types.items() if name != TEMPLATE_VARS and not name.startswith(META)}
    return Columns(fixed, dict(manifest.get("kept", {})), TEMPLATE_VARS in types)


class DatasetPlan(BaseModel):
    """How to write the images of a batch as a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout = Field(
        default="webdataset", description="`webdataset`: tars. `imagefolder`: files. `parquet`: tables."
    )
    splits: dict[str, Annotated[float, Field(strict=True)]] = Field(
        default={},
        validate_default=True,
        description="Shares of the prompts by name, such as `test: 0.1`; what they leave is `train`. A prompt's hash "
        "decides, so that all its pictures are in one split.",
        examples=[{"test": 0.1}],
    )

    @field_validator("splits")
    @classmethod
    def _add_remainder(cls, given: dict[str, float]) -> dict[str, float]:
        if invalid := [name for name in given if not re.fullmatch(r"(?!all$)[a-z][a-z0-9_]{0,30}", name)]:
            raise ValueError(sentence("split_name_invalid", name=invalid[0]))
        if not all(0 < share <= 1 for share in given.values()):  # NaN too
            raise ValueError(sentence("split_share_invalid"))
        rest = round(1.0 - sum(given.values()), 9)
        if rest < 0 or (rest > 0 and REMAINDER in given):
            raise ValueError(sentence("split_shares_wrong", total=sum(given.values())))
        splits = given | {REMAINDER: rest} if rest else given
        if len(splits) > MAX_SPLITS:
            raise ValueError(sentence("too_many_splits", count=len(splits), limit=MAX_SPLITS))
        return dict(sorted(splits.items()))

    @property
    def needs_code(self) -> int:
        """The least CODE that can write it: older code does not write all COLUMNS."""
        return max(COLUMNS_SINCE, needs_code(PLAN_SINCE, self.model_dump(mode="json", exclude_defaults=True)))

    @property
    def split_names(self) -> list[str]:
        """In the order in which the splits are written."""
        return list(self.splits)

    def split_of(self, prompt: str) -> str:
        """The split of a prompt. Depends on the prompt's hash and the shares alone, not on the rest of the batch."""
        fraction, sum_so_far = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) / 2**64, 0.0
        for name, share in self.splits.items():
            sum_so_far += share
            if fraction < sum_so_far:
                return name
        return self.split_names[-1]

    def digest(self, batch_id: UUID) -> str:
        """Identifies the plan in the dataset's manifests: equal for equal plans of the same batch."""
        return text_sha256(canonical_json({"format": FORMAT, "batch": str(batch_id), **self.model_dump()}))


def item_id(recipe: Recipe, index: int) -> str:
    """The key of an image's row: the same for the same recipe and index in every dataset."""
    return text_sha256(f"{recipe.digest}\n{index}")


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Names


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05}"


def data_path(layout: Layout, shard: str) -> str:
    """The file with a shard's images; of an image folder, the list of the files beside it."""
    return {
        "webdataset": f"data/{shard}.tar",
        "parquet": f"data/{shard}.parquet",
        "imagefolder": f"data/{shard}/metadata.jsonl",
    }[layout]


def image_name(row: Mapping[str, Any]) -> str:
    return f"{row['key']}.{EXTENSIONS[row['format']]}"


def image_path(shard: str, row: Mapping[str, Any]) -> str:
    """The file of one image, in an image folder."""
    return f"data/{shard}/{image_name(row)}"


def split_pattern(layout: Layout, split: str) -> str:
    """A glob of the files of a split."""
    return {
        "webdataset": f"data/{split}-*.tar",
        "parquet": f"data/{split}-*.parquet",
        "imagefolder": f"data/{split}-*/**",
    }[layout]


def metadata_path(shard: str) -> str:
    return f"metadata/{shard}.parquet"


def shard_manifest_path(shard: str) -> str:
    return f"_state/{shard}.json"
