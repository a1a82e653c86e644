"""The files that describe a dataset: card, samples, licences, manifest. Equal shard manifests give equal bytes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.datasets import layout
from common.datasets.columns import META, TEMPLATE_VARS
from common.recipes.origin import TYPES
from common.sentences import printable
from worker.datasets.conversion import QUALITY
from worker.datasets.facts import DatasetFacts, is_of
from worker.datasets.samples import grid

SHOWN_SETTINGS, SHOWN_BATCHES = 20, 20
KNOWN_LICENCES = {"Apache-2.0": "apache-2.0", "CreativeML OpenRAIL-M": "creativeml-openrail-m", "MIT": "mit"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LOAD = {
    "webdataset": "row = data[0]  # row['{extension}'] is the image, row['txt'] the prompt, row['json'] the whole row",
    "imagefolder": "row = data[0]  # row['image'] is the image; the other columns are those of the metadata",
    "parquet": "row = data[0]  # row['image'] is the image; the other columns are those of the metadata",
}


class DatasetCard(DatasetFacts):
    """The files that tell a reader of these facts."""

    def files(self, samples: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
        """The paths and contents of the files, in the order in which they are written. `samples`: image files."""
        if samples:
            yield layout.SAMPLES, grid(samples)
        for name, text in self.licence_texts.items():
            yield f"licences/{name}.txt", text.encode()
        yield layout.README, self.card(has_samples=bool(samples)).encode()
        yield layout.MANIFEST, (json.dumps(self.manifest(), ensure_ascii=False, indent=2) + "\n").encode()

    # The card

    def card(self, *, has_samples: bool) -> str:
        name = self.name
        statuses, licences = self.counts("statuses"), {model["licence"] for model in self.models.values()}
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        return "\n".join(
            [
                *self._front_matter(name, licences),
                f"# {name}",
                "",
                f"{self.total('pictures'):,} images of {self.prompts:,} different prompts, rendered by "
                f"{', '.join(self.models)} on a Huafang farm. Every image is synthetic.",
                "",
                *([f"![samples]({layout.SAMPLES})", ""] if has_samples else []),
                *self._loading(),
                *self._kept(),
                "## What is in it",
                f"{self.total('rows'):,} images: {counts}. Only stored images have a file; `metadata/` has a row for "
                "every image.",
                *self._choices(),
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
                *(f"{self._origin(batch)}\n" for batch in self.batches[:SHOWN_BATCHES]),
                *([f"{more:,} more batches.\n"] if (more := len(self.batches) - SHOWN_BATCHES) > 0 else []),
                "`manifest.json` has the plan, the models, the versions of the software that rendered, and a checksum "
                "of every shard; every image file contains its recipe.",
                "",
                *self._settings(),
                *self._licences(),
            ]
        )

    def _choices(self) -> list[str]:
        """What of the batches was chosen, and what was done to the images."""
        plan, found = self.plan, list[str]()
        if plan.where:
            found += [
                "",
                "Of the batches, the rows were taken for which this is true:",
                "",
                f"    {_one_line(plan.where)}",
            ]
        if self.is_converted:
            size = f"the shorter side is at most {plan.resize} pixels" if plan.resize else ""
            kind = f"{plan.image_format or 'the format of each'}, quality {plan.quality or QUALITY}"
            kind = "png" if plan.image_format == "png" else kind
            found += [
                "",
                f"Images were written anew where that changes them ({'; '.join(filter(None, (kind, size)))}); "
                "`original_sha256` is then the checksum of what the farm had stored.",
            ]
        return found

    @staticmethod
    def _origin(batch: Mapping[str, Any]) -> str:
        return (
            f"Batch `{batch['id']}` of {batch['created_at']:%Y-%m-%d}, whose prompts have the sha256 "
            f"`{batch['upload_sha256']}`; its seed is {batch['plan']['seed']}."
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
        row = [one for one in fixed if one["name"] != TEMPLATE_VARS] + [meta]
        row += [one for one in fixed if one["name"] == TEMPLATE_VARS]
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
        formats = sorted(self.counts("formats"))
        extension = layout.EXTENSIONS[formats[0]] if len(formats) == 1 else "FORMAT"
        lines = [
            "```python",
            *(["import webdataset"] if is_tars else []),
            "from datasets import load_dataset",
            "",
            f'data = load_dataset("FOLDER", split="{split}")',
            LOAD[self.plan.layout].format(extension=extension),
            f'rows = load_dataset("parquet", data_files="FOLDER/metadata/{split}-*.parquet")  # failed images too',
        ]
        if is_tars:
            lines.append(f'tars = webdataset.WebDataset("FOLDER/data/{split}-{self._numbers(split)}.tar")')
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

    def _numbers(self, split: str) -> str:
        """Of the shards of a split that have images, as webdataset reads them."""
        found = [
            shard["shard"].rpartition("-")[2] for shard in self.shards if is_of(shard, split) and shard["pictures"]
        ]
        if len(found) == 1:
            return found[0]
        is_row = int(found[-1]) - int(found[0]) + 1 == len(found)
        return f"{{{found[0]}..{found[-1]}}}" if is_row else f"{{{','.join(found)}}}"

    def _settings(self) -> list[str]:
        found = self.counts("settings").most_common()
        more = [f"| {len(found) - SHOWN_SETTINGS} more | |"] if len(found) > SHOWN_SETTINGS else []
        rows = [f"| {setting} | {count:,} |" for setting, count in found[:SHOWN_SETTINGS]]
        head = ["| model, mode, size, steps × scheduler, guidance | images |", "|---|---|"]
        return ["## Parameters", *head, *rows, *more, ""]

    def _licences(self) -> list[str]:
        lines = ["## Licence", "Each image is subject to the licence of the model that rendered it:", ""]
        for name, model in self.models.items():
            known = f"({model['source']}): [{model['licence']}]({model['licence_url']})"
            lines.append(f"- {name} {known if model['licence'] else 'is not in the catalogue any more.'}")
        for licence in self.licences:
            if licence.restrictions:
                lines += ["", f"Under {licence.name} the model must not be used:", ""]
                lines += [f"- {one}" for one in licence.restrictions]
            if licence.terms:
                lines += ["", f"{licence.name} {'; '.join(licence.terms)}."]
            if licence.text:
                lines += ["", f"### {licence.name}", "```", licence.text.strip("\n"), "```"]
        return [*lines, ""]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _feature(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "dtype": kind.rstrip("_")}


def _cell(name: str) -> str:
    """A name in a table of Markdown."""
    return printable(name).replace("|", "\\|")
