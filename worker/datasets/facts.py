"""What is known of a dataset once its last shard is written, and its manifest. Equal shards give equal manifests."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from PIL import __version__ as PILLOW

from common.catalog.catalog import Catalog, Licence
from common.datasets import layout
from common.datasets.columns import Columns
from common.datasets.layout import DatasetPlan
from worker.datasets.shard import ShardManifest

SHOWN_NAMES = 3
SHOWN_SKIPPED = 1000  # skipped lines of the prompt file, in the manifest


@dataclass(frozen=True)
class DatasetFacts:
    """What is known of a dataset when its last shard is written.

    `digest`: of the plan. `batches`: facts about each, by name; `skips` are the first skipped lines of its prompt
    file. `prompts`: different ones, of images with a file.
    """

    plan: DatasetPlan
    digest: str
    batches: Sequence[Mapping[str, Any]]
    shards: Sequence[ShardManifest]
    prompts: int
    catalog: Catalog
    columns: Columns = field(default_factory=Columns)

    # Counts

    def total(self, key: str, split: str | None = None) -> int:
        return sum(shard[key] for shard in self.shards if split is None or is_of(shard, split))

    def counts(self, key: str) -> Counter[str]:
        """The sum of these counts over all shards."""
        return sum((Counter(shard[key]) for shard in self.shards), Counter[str]())

    def distinct(self, key: str) -> list[str]:
        """The values in this list of any shard, each once."""
        return sorted({value for shard in self.shards for value in shard[key]})

    @cached_property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """The facts about each model that rendered an image, by name."""
        names = sorted({setting.partition(" ")[0] for setting in self.counts("settings")})
        found: dict[str, Mapping[str, Any]] = {}
        for name in names:
            model = self.catalog.models.get(name)
            revisions = [one.partition(" ")[2] for one in self.distinct("revisions") if one.partition(" ")[0] == name]
            found[name] = {
                "source": model.source if model else None,
                "revisions": [revision for revision in revisions if revision],
                "licence": model.licence.name if model else None,
                "licence_url": model.licence.url if model else None,
            }
        return found

    @property
    def licence_texts(self) -> dict[str, str]:
        return {licence.name: licence.text for licence in self.licences if licence.text}

    @property
    def licences(self) -> list[Licence]:
        """The licences of those models that are in the catalogue, each once."""
        models = [self.catalog.models[name] for name in self.models if name in self.catalog.models]
        return list({model.licence.name: model.licence for model in models}.values())

    @property
    def splits(self) -> dict[str, Mapping[str, Any]]:
        return {
            name: {
                "share": share,
                "shards": sum(is_of(shard, name) for shard in self.shards),
                "rows": self.total("rows", name),
                "pictures": self.total("pictures", name),
            }
            for name, share in self.plan.splits.items()
        }

    # The manifest

    def manifest(self) -> dict[str, Any]:
        named = {"layout", "splits"}  # they are there in more detail
        return {
            "plan": self.digest,
            "format": layout.FORMAT,
            "layout": self.plan.layout,
            "columns": self.columns.types,
            "kept": dict(self.columns.kinds),
            **{name: value for name, value in self.plan.stored.items() if name not in named},
            "splits": self.splits,
            "counts": {"rows": self.total("rows"), **self.counts("statuses")},
            "prompts": self.prompts,
            **self._batches(),
            "models": self.models,
            "settings": self.counts("settings"),
            "worker_classes": [json.loads(one) for one in self.distinct("worker_classes")],
            "painted_by": [json.loads(one) for one in self.distinct("versions")],
            "written_by": f"Huafang {version('huafang')}" + (f", Pillow {PILLOW}" if self.is_converted else ""),
            "shards": {
                shard["shard"]: {"rows": shard["rows"], "recipes": shard["recipes"], "files": shard["files"]}
                for shard in self.shards
            },
        }

    def _batches(self) -> dict[str, Any]:
        """Of several batches a list, each with its skipped lines."""
        found = [
            {**batch, "id": str(batch["id"]), "created_at": batch["created_at"].isoformat()} for batch in self.batches
        ]
        if len(found) > 1:
            return {"batches": found}
        return {
            "batch": {name: value for name, value in found[0].items() if name != "skips"},
            "skipped": found[0]["skips"],
        }

    @property
    def is_converted(self) -> bool:
        return bool(self.plan.image_format or self.plan.quality or self.plan.resize)

    @property
    def name(self) -> str:
        names = list(dict.fromkeys(batch["name"] or f"Batch {batch['id']}" for batch in self.batches))
        return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if (more := len(names) - SHOWN_NAMES) > 0 else "")


def is_of(shard: ShardManifest, split: str) -> bool:
    """Whether a shard is one of a split."""
    return str(shard["shard"]).rpartition("-")[0] == split
