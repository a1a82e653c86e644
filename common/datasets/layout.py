"""How a dataset lies: its plan, the names of its files, its columns, and the split of a prompt. Pure values.

Those who write a dataset and those who check one agree by this page. It reads no file and knows no table.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.recipes.recipe import Recipe, canonical_json

FORMAT = 1  # of what is written; a part of every plan's digest
SHARD_IMAGES = 10_000
SHARD_BYTES = 1_000_000_000
MOST_SPLITS = 8
REST = "train"  # the split that takes what the others leave

FOLDERS = ("data", "metadata", "_state", "licences")
README, MANIFEST, SUMS, SAMPLES = "README.md", "manifest.json", "SHA256SUMS", "samples.jpg"
AT_TOP = (README, MANIFEST, SUMS, SAMPLES)
COLUMNS = {  # name → its type, in Arrow's words and in those of the `datasets` library
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
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}

Layout = Literal["webdataset", "imagefolder", "parquet"]
Row = dict[str, Any]  # by column


class DatasetPlan(BaseModel):
    """How a batch is to be written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout = Field(
        default="webdataset", description="`webdataset`: tars. `imagefolder`: files. `parquet`: tables."
    )
    splits: dict[str, float] = Field(
        default={},
        validate_default=True,
        description="Shares of the prompts by name, such as `test: 0.1`; what they leave is `train`. A prompt's hash "
        "decides, so that all its pictures are in one split.",
        examples=[{"test": 0.1}],
    )

    @field_validator("splits")
    @classmethod
    def _whole(cls, given: dict[str, float]) -> dict[str, float]:
        if strange := [name for name in given if not re.fullmatch(r"(?!all$)[a-z][a-z0-9_]{0,30}", name)]:
            raise ValueError(f"has the name {strange[0]!r}; names are of a to z, 0 to 9 and _, and not `all`")
        if not all(0 < share <= 1 for share in given.values()):  # NaN too
            raise ValueError("has a share that is not above 0 and at most 1")
        rest = round(1.0 - sum(given.values()), 9)
        if rest < 0 or (rest > 0 and REST in given):
            raise ValueError(f"has shares that sum up to {sum(given.values()):g}, not to 1")
        if len(whole := given | {REST: rest} if rest else given) > MOST_SPLITS:
            raise ValueError(f"has {len(whole)} splits; {MOST_SPLITS} are the most")
        return dict(sorted(whole.items()))

    @property
    def names(self) -> list[str]:
        """Of its splits, in the order in which they are written."""
        return list(self.splits)

    def split_of(self, prompt: str) -> str:
        """The hash of the prompt decides, whatever else is in the batch."""
        at, sum_so_far = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) / 2**64, 0.0
        for name, share in self.splits.items():
            sum_so_far += share
            if at < sum_so_far:
                return name
        return self.names[-1]

    def digest(self, batch_id: UUID) -> str:
        """What its marks and its manifest are known by: equal for equal plans of the same batch."""
        return sha256(canonical_json({"format": FORMAT, "batch": str(batch_id), **self.model_dump()}))


def item_id(recipe: Recipe, index: int) -> str:
    """The same picture has the same id in every dataset."""
    return sha256(f"{recipe.digest}\n{index}")


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# Names


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05}"


def data_path(layout: Layout, shard: str) -> str:
    """Where a shard's pictures are: one file, or the list of the files in its folder."""
    return {
        "webdataset": f"data/{shard}.tar",
        "parquet": f"data/{shard}.parquet",
        "imagefolder": f"data/{shard}/metadata.jsonl",
    }[layout]


def picture_name(row: Mapping[str, Any]) -> str:
    return f"{row['key']}.{EXTENSIONS[row['format']]}"


def picture_path(shard: str, row: Mapping[str, Any]) -> str:
    """Where a picture of an image folder is."""
    return f"data/{shard}/{picture_name(row)}"


def pattern(layout: Layout, split: str) -> str:
    """What finds the data of a split."""
    return {
        "webdataset": f"data/{split}-*.tar",
        "parquet": f"data/{split}-*.parquet",
        "imagefolder": f"data/{split}-*/**",
    }[layout]


def metadata_path(shard: str) -> str:
    return f"metadata/{shard}.parquet"


def mark_path(shard: str) -> str:
    return f"_state/{shard}.json"
