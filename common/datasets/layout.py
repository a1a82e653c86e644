"""The layout of a dataset: its plan, the names of its files, and the split of a prompt. Pure values.

The exporter writes by it and `huafang dataset verify` checks by it. Reads no file, knows no table.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from common.datasets import conditions, sentence
from common.datasets.columns import COLUMNS, Row
from common.recipes.needs import Since, needs_code
from common.recipes.recipe import canonical_json

PLAN_SINCE: Since = {  # fields of a plan that not all code knows
    **dict.fromkeys(("where", "shard_images", "shard_size", "image_format", "quality", "resize"), lambda _: 9),
}
FORMAT = 2  # the version of the layout; a part of every plan's digest. In 1, keys depended on the siblings of a picture
COLUMNS_SINCE = 9  # the CODE since which this format is written: with all COLUMNS, and what rows keep
SHARD_IMAGES = 10_000
SHARD_BYTES = 1_000_000_000
MAX_SPLITS, MAX_BATCHES = 8, 100
REMAINDER = "train"  # the split that takes what the named splits leave

FOLDERS = ("data", "metadata", "_state", "licences")
README, MANIFEST, SUMS, SAMPLES = "README.md", "manifest.json", "SHA256SUMS", "samples.jpg"
TOP_LEVEL_FILES = (README, MANIFEST, SUMS, SAMPLES)
CONDITION_COLUMNS = tuple(COLUMNS.items())  # that `where` may name, beside kept ones
EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}

Layout = Literal["webdataset", "imagefolder", "parquet"]
ImageFormat = Literal["png", "webp", "jpeg"]


class DatasetPlan(BaseModel):
    """Which images of its batches are in a dataset, and how they are written."""

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
    where: str | None = Field(
        default=None,
        strict=True,
        description="Which rows: comparisons of columns, `and`, `or`, `not`, `in`, `is null`. Kept columns are "
        "`meta.NAME`.",
        examples=["status = 'stored' and steps >= 20"],
    )
    shard_images: int | None = Field(
        default=None, strict=True, ge=1, le=SHARD_IMAGES, description="The most pictures of a shard; 10,000 by default."
    )
    shard_size: int | None = Field(
        default=None,
        strict=True,
        ge=1_000_000,
        le=SHARD_BYTES,
        description="The most bytes of pictures of a shard, as the farm stores them; 1 GB by default.",
    )
    image_format: ImageFormat | None = Field(
        default=None, description="Write the pictures in this format; by default they are as they were rendered."
    )
    resize: int | None = Field(
        default=None,
        strict=True,
        ge=16,
        le=4096,
        description="Make the shorter side of larger pictures so many pixels.",
    )
    quality: int | None = Field(
        default=None, strict=True, ge=1, le=100, description="Of the written WebP or JPEG pictures; 90 by default."
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

    @field_validator("where")
    @classmethod
    def _parse_where(cls, where: str | None) -> str | None:
        if where is None or not where.strip():
            return None
        conditions.parse(where, CONDITION_COLUMNS)
        return where

    @field_validator("quality")
    @classmethod
    def _need_use_of_quality(cls, quality: int | None, info: ValidationInfo) -> int | None:
        format, resize = info.data.get("image_format"), info.data.get("resize")
        if quality and (format == "png" or not (format or resize)):
            raise ValueError(sentence("quality_unused"))
        return quality

    @property
    def needs_code(self) -> int:
        """The least CODE that can write it: older code does not write all COLUMNS."""
        return max(COLUMNS_SINCE, needs_code(PLAN_SINCE, self.model_dump(mode="json", exclude_defaults=True)))

    @property
    def stored(self) -> dict[str, Any]:
        """As JSON, without what it does not say: two plans that mean the same are the same."""
        return self.model_dump(mode="json", exclude_none=True)

    def chooses(self, row: Row) -> bool:
        """Whether a row of its batches, as it was rendered, is in the dataset."""
        return self.where is None or conditions.parse(self.where, CONDITION_COLUMNS)(row) is True

    @property
    def split_names(self) -> list[str]:
        """In the order in which the splits are written."""
        return list(self.splits)

    def split_of(self, prompt: str) -> str:
        """The split of a prompt. Depends on the prompt's hash and the shares alone, not on the rest of the batch."""
        fraction, sum_so_far = prompt_hash(prompt) / 2**64, 0.0
        for name, share in self.splits.items():
            sum_so_far += share
            if fraction < sum_so_far:
                return name
        return self.split_names[-1]

    def digest(self, *batch_ids: UUID) -> str:
        """Identifies the plan in the dataset's manifests: equal for equal plans of the same batches."""
        ids = list(map(str, batch_ids))
        of = {"batch": ids[0]} if len(ids) == 1 else {"batches": ids}
        return text_sha256(canonical_json({"format": FORMAT, **of, **self.stored}))


def prompt_hash(prompt: str) -> int:
    """Eight bytes that stand for a prompt."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8])


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
