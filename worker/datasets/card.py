"""What a dataset says of itself: the card, some samples, licences, the manifest. Equal marks, equal bytes."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any
from uuid import UUID

from PIL import Image, ImageOps

from common.catalog.catalog import Catalog, Licence
from common.datasets import layout
from common.datasets.layout import DatasetPlan

Mark = Mapping[str, Any]  # what `worker.datasets.shard` says of a shard it has written

SAMPLES, ACROSS, TILE = 12, 4, 192  # of the grid; pixels
SHOWN_SETTINGS = 20
SHOWN_SKIPS = 1000  # lines of the batch's file, in the manifest
KNOWN_LICENCES = {"Apache-2.0": "apache-2.0", "CreativeML OpenRAIL-M": "creativeml-openrail-m", "MIT": "mit"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LOAD = {
    "webdataset": "row = data[0]  # row['png'] is the picture, row['txt'] the prompt, row['json'] all that is known",
    "imagefolder": "row = data[0]  # row['image'] is the picture, and beside it are the columns of the metadata",
    "parquet": "row = data[0]  # row['image'] is the picture, and beside it are the columns of the metadata",
}


@dataclass(frozen=True)
class DatasetCard:
    """All that is known of a dataset when its last shard is written. `origin`: the row of its batch.

    `skips`: the first lines of its file that are no prompts.
    """

    plan: DatasetPlan
    batch_id: UUID
    origin: Mapping[str, Any]
    skips: Sequence[Mapping[str, Any]]
    marks: Sequence[Mark]
    catalog: Catalog

    def files(self, samples: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
        """The files that say it, in the order in which they are written."""
        if samples:
            yield layout.SAMPLES, grid(samples)
        for name, text in self.licence_texts.items():
            yield f"licences/{name}.txt", text.encode()
        yield layout.README, self.card(has_samples=bool(samples)).encode()
        yield layout.MANIFEST, (json.dumps(self.manifest(), ensure_ascii=False, indent=2) + "\n").encode()

    # Counts

    def total(self, key: str, split: str | None = None) -> int:
        return sum(mark[key] for mark in self.marks if split is None or self._is_of(mark, split))

    def counted(self, key: str) -> Counter[str]:
        """The sum of these counts of all marks."""
        return sum((Counter(mark[key]) for mark in self.marks), Counter[str]())

    def seen(self, key: str) -> list[str]:
        """What is in this list of any mark."""
        return sorted({one for mark in self.marks for one in mark[key]})

    @cached_property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """What is known of the models that painted it."""
        names = sorted({setting.partition(" ")[0] for setting in self.counted("settings")})
        found: dict[str, Mapping[str, Any]] = {}
        for name in names:
            model = self.catalog.models.get(name)
            revisions = [one.partition(" ")[2] for one in self.seen("revisions") if one.partition(" ")[0] == name]
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
        """Of those models that the catalogue has, each once."""
        models = [self.catalog.models[name] for name in self.models if name in self.catalog.models]
        return list({model.licence.name: model.licence for model in models}.values())

    def _is_of(self, mark: Mark, split: str) -> bool:
        return str(mark["shard"]).rpartition("-")[0] == split

    @property
    def splits(self) -> dict[str, Mapping[str, Any]]:
        return {
            name: {
                "share": share,
                "shards": sum(self._is_of(mark, name) for mark in self.marks),
                "rows": self.total("rows", name),
                "pictures": self.total("pictures", name),
            }
            for name, share in self.plan.splits.items()
        }

    # The manifest

    def manifest(self) -> dict[str, Any]:
        batch = {**self.origin, "id": str(self.batch_id), "created_at": self.origin["created_at"].isoformat()}
        return {
            "plan": self.plan.digest(self.batch_id),
            "format": layout.FORMAT,
            "layout": self.plan.layout,
            "splits": self.splits,
            "counts": {"rows": self.total("rows"), **self.counted("statuses")},
            "batch": batch,
            "skipped": self.skips,
            "models": self.models,
            "settings": self.counted("settings"),
            "worker_classes": [json.loads(one) for one in self.seen("worker_classes")],
            "painted_by": [json.loads(one) for one in self.seen("versions")],
            "written_by": f"Huafang {version('huafang')}",
            "shards": {
                mark["shard"]: {"rows": mark["rows"], "recipes": mark["recipes"], "files": mark["files"]}
                for mark in self.marks
            },
        }

    # The card

    def card(self, *, has_samples: bool) -> str:
        name = self.origin["name"] or f"Batch {self.batch_id}"
        statuses, licences = self.counted("statuses"), {model["licence"] for model in self.models.values()}
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        return "\n".join(
            [
                *self._front_matter(name, licences),
                f"# {name}",
                "",
                f"{self.total('pictures'):,} pictures of {self.origin['prompts'] or 0:,} prompts, painted by "
                f"{', '.join(self.models)} on a Huafang farm. Every picture is synthetic.",
                "",
                *([f"![samples]({layout.SAMPLES})", ""] if has_samples else []),
                *self._loading(),
                "## What is in it",
                f"{self.total('rows'):,} images: {counts}. Only those that are stored have a picture; `metadata/` has "
                "a row of every one.",
                "",
                "| split | share | pictures | rows | shards |",
                "|---|---|---|---|---|",
                *(
                    f"| {split} | {one['share']:g} | {one['pictures']:,} | {one['rows']:,} | {one['shards']} |"
                    for split, one in self.splits.items()
                ),
                "",
                "All pictures of a prompt are in one split: a hash of the prompt decides.",
                "",
                "## Where it comes from",
                f"Batch `{self.batch_id}` of {self.origin['created_at']:%Y-%m-%d}, whose prompts have the sha256 "
                f"`{self.origin['upload_sha256']}`; the seed of the first image is {self.origin['plan']['seed']}, the "
                "others count on from it. `manifest.json` has the plan, the models, the versions of what painted, and "
                "a checksum of every shard; every picture carries its recipe.",
                "",
                *self._settings(),
                *self._licences(),
            ]
        )

    def _front_matter(self, name: str, licences: set[str | None]) -> list[str]:
        known = {KNOWN_LICENCES.get(licence or "", "other") for licence in licences}
        paths = [
            f"  - split: {split}\n    path: {json.dumps(layout.pattern(self.plan.layout, split))}"
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
            "---",
            "",
        ]

    def _loading(self) -> list[str]:
        there = [split for split, one in self.splits.items() if one["pictures"]]
        split, is_tars = layout.REST if layout.REST in there else there[0], self.plan.layout == "webdataset"
        lines = [
            "```python",
            *(["import webdataset"] if is_tars else []),
            "from datasets import load_dataset",
            "",
            f'data = load_dataset("FOLDER", split="{split}")',
            LOAD[self.plan.layout],
            f'rows = load_dataset("parquet", data_files="FOLDER/metadata/{split}-*.parquet")  # of failed images too',
        ]
        if is_tars:
            lines.append(f'tars = webdataset.WebDataset("FOLDER/data/{split}-{{00000..{self._last(split)}}}.tar")')
        return [*lines, "```", ""]

    def _last(self, split: str) -> str:
        return f"{self.splits[split]['shards'] - 1:05}"

    def _settings(self) -> list[str]:
        found = self.counted("settings").most_common()
        more = [f"| {len(found) - SHOWN_SETTINGS} more | |"] if len(found) > SHOWN_SETTINGS else []
        rows = [f"| {setting} | {count:,} |" for setting, count in found[:SHOWN_SETTINGS]]
        head = ["| model, mode, size, steps × scheduler, guidance | images |", "|---|---|"]
        return ["## Parameters", *head, *rows, *more, ""]

    def _licences(self) -> list[str]:
        lines = ["## Licence", "The pictures come under what the licence of the model that painted them says:", ""]
        for name, model in self.models.items():
            lines.append(f"- {name} ({model['source']}): [{model['licence']}]({model['licence_url']})")
        for licence in self.licences:
            if licence.restrictions:
                lines += ["", f"By {licence.name} the model must not be used:", ""]
                lines += [f"- {one}" for one in licence.restrictions]
            if licence.text:
                lines += ["", f"### {licence.name}", "```", licence.text.strip("\n"), "```"]
        return [*lines, ""]


def grid(pictures: Sequence[bytes]) -> bytes:
    """Some pictures side by side, as a JPEG."""
    across = min(ACROSS, len(pictures))
    sheet = Image.new("RGB", (across * TILE, -(-len(pictures) // across) * TILE), "white")
    for number, data in enumerate(pictures):
        with suppress(OSError), Image.open(io.BytesIO(data)) as opened:  # one that is broken leaves its place empty
            picture = ImageOps.contain(opened.convert("RGB"), (TILE, TILE))
            sheet.paste(picture, (number % across * TILE, number // across * TILE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85)
    return file.getvalue()
