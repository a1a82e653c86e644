"""A grid as pure values: the pictures of a batch, in tables by prompt and by the axes of its matrix.

    one axis     one table: a row per prompt, a column per value of the axis
    two axes     one table per prompt: a row per value of the first axis, a column per value of the second

Knows neither how pictures are downloaded nor how a table is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import sentence
from cli.client import Json
from cli.errors import Failure
from cli.watch import failure_reason
from common.batches.matrix import Axis, axes
from common.catalog.styles import StyleUse

VALUE_LABELS = {"steps": "{} steps", "guidance": "guidance {}", "width": "{} wide", "height": "{} high"}


@dataclass(frozen=True)
class Cell:
    """A picture, or the reason in `missing` why there is none."""

    label: str
    picture: Path | None
    missing: str = ""


@dataclass(frozen=True)
class TableRow:
    title: str
    subtitle: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    title: str
    subtitle: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Comparison:
    """A whole grid. `about`: what its pictures have in common, by name."""

    about: dict[str, str]
    tables: tuple[Table, ...]

    @property
    def cells(self) -> list[Cell]:
        return [cell for table in self.tables for row in table.rows for cell in row.cells]


@dataclass(frozen=True)
class SeedCells:
    """One prompt and seed, with a cell per variant."""

    prompt: str
    seed: int
    cells: tuple[Cell, ...]

    @property
    def subtitle(self) -> str:
        return f"seed {self.seed}"


def compare(batch: Json, jobs: Sequence[Json]) -> Comparison:
    """The comparison of a batch; `jobs` in their order. Raises Failure where the batch has more than two axes."""
    labels = [[axis_label(axis, values) for values in axis.values] for axis in grid_axes(batch)]
    if len(labels) < 2:
        (columns,) = labels or [[batch["model"]]]
        rows = [TableRow(each.prompt, each.subtitle, each.cells) for each in cells_by_seed(jobs, columns)]
        tables = [Table("", "", tuple(columns), tuple(rows))]
    else:
        down, across = labels
        names = [f"{row}, {column}" for row in down for column in across]
        tables = [
            Table(each.prompt, each.subtitle, tuple(across), tuple(split_rows(down, each.cells)))
            for each in cells_by_seed(jobs, names)
        ]
    defaults = {name.replace("_", " "): str(value) for name, value in batch["defaults"].items() if value is not None}
    return Comparison({**defaults, "batch": batch["id"]}, tuple(tables))


def grid_axes(batch: Json) -> tuple[Axis, ...]:
    found = axes(batch["matrix"])
    if len(found) > 2:
        raise Failure(sentence("too_many_axes", batch=batch["id"], count=len(found)))
    return found


def cells_by_seed(jobs: Sequence[Json], variants: Sequence[str]) -> list[SeedCells]:
    """In the order of the prompts. In a batch the jobs of all variants of a prompt are adjacent."""
    found = []
    for start in range(0, len(jobs), len(variants)):
        alike = jobs[start : start + len(variants)]
        first = alike[0]
        for index, image in enumerate(first["images"]):
            prompt = written_prompt(first["recipe"])
            cells = [cell(job, index, f"{prompt}, {variant}") for job, variant in zip(alike, variants, strict=False)]
            missing = [
                Cell(f"{prompt}, {variant}", None, sentence("not_rendered")) for variant in variants[len(alike) :]
            ]
            found.append(SeedCells(prompt, image["seed"], (*cells, *missing)))
    return found


def written_prompt(recipe: Json) -> str:
    """Without what its style added. An older farm has no styles."""
    style = recipe.get("style")
    drawn = str(recipe["prompt"])
    return StyleUse.model_validate(style, extra="ignore").written_prompt(drawn) if style else drawn


def split_rows(titles: Sequence[str], cells: Sequence[Cell]) -> list[TableRow]:
    width = len(cells) // len(titles)
    return [TableRow(title, "", tuple(cells[at * width : (at + 1) * width])) for at, title in enumerate(titles)]


def cell(job: Json, index: int, label: str) -> Cell:
    if index >= len(job["images"]):
        return Cell(label, None, sentence("not_rendered"))
    image = job["images"][index]
    if "path" in image:
        return Cell(f"{label}, seed {image['seed']}", Path(image["path"]))
    return Cell(label, None, missing_reason(image))


def missing_reason(image: Json) -> str:
    match image["state"]:
        case "flagged":
            return sentence("cell_flagged")
        case "failed":
            return sentence("cell_failed", reason=failure_reason(image))
    return str(image["state"])


def axis_label(axis: Axis, values: Sequence[Any]) -> str:
    return ", ".join(value_label(field, value) for field, value in zip(axis.fields, values, strict=True))


def value_label(field: str, value: Any) -> str:
    if value is None:
        return f"usual {field.replace('_', ' ')}"
    return VALUE_LABELS.get(field, "{}").format(value if not isinstance(value, float) else f"{value:g}")
