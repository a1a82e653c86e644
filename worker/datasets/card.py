"""The files that describe a dataset: card, samples, licences, manifest. Equal shard manifests give equal bytes."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any
from uuid import UUID

from PIL import Image, ImageOps

from common.catalog.catalog import Catalog, Licence
from common.datasets import layout
from common.datasets.layout import META, Columns, DatasetPlan
from common.labels.reader import labelled_xmp
from common.recipes.origin import TYPES
from common.sentences import printable
from worker.datasets.shard import ShardManifest

SAMPLES, COLUMNS, TILE = 12, 4, 192  # of the grid: images, images a row, pixels
SHOWN_SETTINGS = 20
SHOWN_SKIPPED = 1000  # skipped lines of the prompt file, in the manifest
KNOWN_LICENCES = {"Apache-2.0": "apache-2.0", "CreativeML OpenRAIL-M": "creativeml-openrail-m", "MIT": "mit"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LOAD = {
    "webdataset": "row = data[0]  # row['png'] is the image, row['txt'] the prompt, row['json'] the whole row",
    "imagefolder": "row = data[0]  # row['image'] is the image; the other columns are those of the metadata",
    "parquet": "row = data[0]  # row['image'] is the image; the other columns are those of the metadata",
}


@dataclass(frozen=True)
class DatasetCard:
    """What is known of a dataset when its last shard is written.

    `batch`: facts about the batch, by name. `skipped`: the first skipped lines of its prompt file.
    """

    plan: DatasetPlan
    batch_id: UUID
    batch: Mapping[str, Any]
    skipped: Sequence[Mapping[str, Any]]
    shards: Sequence[ShardManifest]
    catalog: Catalog
    columns: Columns = field(default_factory=Columns)

    def files(self, samples: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
        """The paths and contents of the files, in the order in which they are written. `samples`: image files."""
        if samples:
            yield layout.SAMPLES, grid(samples)
        for name, text in self.licence_texts.items():
            yield f"licences/{name}.txt", text.encode()
        yield layout.README, self.card(has_samples=bool(samples)).encode()
        yield layout.MANIFEST, (json.dumps(self.manifest(), ensure_ascii=False, indent=2) + "\n").encode()

    # Counts

    def total(self, key: str, split: str | None = None) -> int:
        return sum(shard[key] for shard in self.shards if split is None or _is_of(shard, split))

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
                "shards": sum(_is_of(shard, name) for shard in self.shards),
                "rows": self.total("rows", name),
                "pictures": self.total("pictures", name),
            }
            for name, share in self.plan.splits.items()
        }

    # The manifest

    def manifest(self) -> dict[str, Any]:
        batch = {**self.batch, "id": str(self.batch_id), "created_at": self.batch["created_at"].isoformat()}
        return {
            "plan": self.plan.digest(self.batch_id),
            "format": layout.FORMAT,
            "layout": self.plan.layout,
            "columns": self.columns.types,
            "kept": dict(self.columns.kinds),
            "splits": self.splits,
            "counts": {"rows": self.total("rows"), **self.counts("statuses")},
            "batch": batch,
            "skipped": self.skipped,
            "models": self.models,
            "settings": self.counts("settings"),
            "worker_classes": [json.loads(one) for one in self.distinct("worker_classes")],
            "painted_by": [json.loads(one) for one in self.distinct("versions")],
            "written_by": f"Huafang {version('huafang')}",
            "shards": {
                shard["shard"]: {"rows": shard["rows"], "recipes": shard["recipes"], "files": shard["files"]}
                for shard in self.shards
            },
        }

    # The card

    def card(self, *, has_samples: bool) -> str:
        name = self.batch["name"] or f"Batch {self.batch_id}"
        statuses, licences = self.counts("statuses"), {model["licence"] for model in self.models.values()}
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        return "\n".join(
            [
                *self._front_matter(name, licences),
                f"# {name}",
                "",
                f"{self.total('pictures'):,} images of {self.batch['prompts'] or 0:,} prompts, rendered by "
                f"{', '.join(self.models)} on a Huafang farm. Every image is synthetic.",
                "",
                *([f"![samples]({layout.SAMPLES})", ""] if has_samples else []),
                *self._loading(),
                *self._kept(),
                "## What is in it",
                f"{self.total('rows'):,} images: {counts}. Only stored images have a file; `metadata/` has a row for "
                "every image.",
                "",
                "| split | share | stored images | rows | shards |",
                "|---|---|---|---|---|",
                *(
                    f"| {split} | {one['share']:g} | {one['pictures']:,} | {one['rows']:,} | {one['shards']} |"
                    for split, one in self.splits.items()
                ),
                "",
                "All images of a prompt are in one split, which a hash of the prompt chooses.",
                "",
                "## Where it comes from",
                f"Batch `{self.batch_id}` of {self.batch['created_at']:%Y-%m-%d}, whose prompts have the sha256 "
                f"`{self.batch['upload_sha256']}`; the seed of the first image is {self.batch['plan']['seed']}, and "
                "each next image has the next seed. `manifest.json` has the plan, the models, the versions of the "
                "software that rendered, and a checksum of every shard; every image file contains its recipe.",
                "",
                *self._settings(),
                *self._licences(),
            ]
        )

    def _front_matter(self, name: str, licences: set[str | None]) -> list[str]:
        known = {KNOWN_LICENCES.get(licence or "", "other") for licence in licences}
        paths = [
            f"  - split: {split}\n    path: {json.dumps(layout.split_pattern(self.plan.layout, split))}"
            for split, one in self.splits.items()
            if one["pictures"]
        ]
        pictures = self.total("pictures")
        return [
            "---",
            f"pretty_name: {json.dumps(name, ensure_ascii=False)}",
            f"license: {known.pop() if len(known) == 1 else 'other'}",
            "language:",
            "- zh",
            "task_categories:",
            "- text-to-image",
            f"size_categories:\n- {next((words for most, words in SIZES if pictures < most), 'n>1M')}",
            "tags:\n- synthetic\n- huafang",
            "configs:",
            "- config_name: default",
            "  data_files:",
            *paths,
            *self._features(),
            "---",
            "",
        ]

    def _features(self) -> list[str]:
        """What the `datasets` library would infer from the first five images, where a kept column may be empty.

        In YAML, of which JSON is a part.
        """
        formats = {format for shard in self.shards for format in shard.get("formats", [])}
        if self.plan.layout != "webdataset" or not self.columns.kinds or len(formats) != 1:
            return []
        types = self.columns.types
        fixed = [_feature(name, kind) for name, kind in types.items() if not name.startswith(META)]
        kept = [_feature(name, TYPES[kind or "string"]) for name, kind in self.columns.kinds.items()]
        meta = {"name": "meta", "struct": kept}
        row = [one for one in fixed if one["name"] != layout.TEMPLATE_VARS] + [meta]
        row += [one for one in fixed if one["name"] == layout.TEMPLATE_VARS]
        features = [
            *(_feature(name, "string") for name in ("__key__", "__url__")),
            _feature(layout.EXTENSIONS[formats.pop()], "image"),
            _feature("txt", "string"),
            {"name": "json", "struct": row},
        ]
        return ["dataset_info:", "- config_name: default", f"  features: {json.dumps(features)}"]

    def _loading(self) -> list[str]:
        present = [split for split, one in self.splits.items() if one["pictures"]]
        split = layout.REMAINDER if layout.REMAINDER in present else present[0]
        is_tars = self.plan.layout == "webdataset"
        lines = [
            "```python",
            *(["import webdataset"] if is_tars else []),
            "from datasets import load_dataset",
            "",
            f'data = load_dataset("FOLDER", split="{split}")',
            LOAD[self.plan.layout],
            f'rows = load_dataset("parquet", data_files="FOLDER/metadata/{split}-*.parquet")  # failed images too',
        ]
        if is_tars:
            lines.append(f'tars = webdataset.WebDataset("FOLDER/data/{split}-{{00000..{self._last(split)}}}.tar")')
        return [*lines, "```", ""]

    def _kept(self) -> list[str]:
        if not self.columns.kinds:
            return []
        kinds = self.columns.kinds.items()
        names = [f"| {_cell(name)} | {TYPES[kind or 'string'].rstrip('_')} |" for name, kind in kinds]
        where = "in the object `meta` of row['json']" if self.plan.layout == "webdataset" else f"as `{META}NAME`"
        return [
            "## Columns of the prompts' file",
            f"Each image has the values of its row {where}, and as `{META}NAME` in `metadata/`; `row` is the number of "
            "the row. Lists and objects are text, as JSON.",
            "",
            "| column | type |",
            "|---|---|",
            *names,
            "",
        ]

    def _last(self, split: str) -> str:
        return f"{self.splits[split]['shards'] - 1:05}"

    def _settings(self) -> list[str]:
        found = self.counts("settings").most_common()
        more = [f"| {len(found) - SHOWN_SETTINGS} more | |"] if len(found) > SHOWN_SETTINGS else []
        rows = [f"| {setting} | {count:,} |" for setting, count in found[:SHOWN_SETTINGS]]
        head = ["| model, mode, size, steps × scheduler, guidance | images |", "|---|---|"]
        return ["## Parameters", *head, *rows, *more, ""]

    def _licences(self) -> list[str]:
        lines = ["## Licence", "Each image is subject to the licence of the model that rendered it:", ""]
        for name, model in self.models.items():
            lines.append(f"- {name} ({model['source']}): [{model['licence']}]({model['licence_url']})")
        for licence in self.licences:
            if licence.restrictions:
                lines += ["", f"Under {licence.name} the model must not be used:", ""]
                lines += [f"- {one}" for one in licence.restrictions]
            if licence.terms:
                lines += ["", f"{licence.name} {'; '.join(licence.terms)}."]
            if licence.text:
                lines += ["", f"### {licence.name}", "```", licence.text.strip("\n"), "```"]
        return [*lines, ""]


def grid(images: Sequence[bytes]) -> bytes:
    """A JPEG with these image files side by side, and their first label. The place of a damaged one stays empty."""
    columns = min(COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * TILE, -(-len(images) // columns) * TILE), "white")
    for number, data in enumerate(images):
        with suppress(OSError), Image.open(io.BytesIO(data)) as opened:
            tile = ImageOps.contain(opened.convert("RGB"), (TILE, TILE))
            sheet.paste(tile, (number % columns * TILE, number // columns * TILE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85, xmp=next(filter(None, map(labelled_xmp, images)), None))
    return file.getvalue()


def _feature(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "dtype": kind.rstrip("_")}


def _cell(name: str) -> str:
    """A name in a table of Markdown."""
    return printable(name).replace("|", "\\|")


def _is_of(shard: ShardManifest, split: str) -> bool:
    return str(shard["shard"]).rpartition("-")[0] == split
