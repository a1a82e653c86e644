"""What a grid compares: the pictures of a batch, in tables by prompt and by what its matrix changes. Pure values.

    one axis     a table: a prompt a row, a value of the axis a column
    two axes     a table for each prompt: the first axis down, the second across

Knows neither how pictures get here nor what a table looks like.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.shell import Failure
from cli.watch import reason
from common.batches.matrix import Axis, axes

Json = dict[str, Any]
WORDS = {"steps": "{} steps", "guidance": "guidance {}", "width": "{} wide", "height": "{} high"}


@dataclass(frozen=True)
class Cell:
    """A picture, or why there is none. `label` says which one it is."""

    label: str
    picture: Path | None
    fate: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table. `note` is what belongs to its title and matters less."""

    title: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Comparison:
    """All of a grid. `about`: what its pictures have in common, by name."""

    about: dict[str, str]
    tables: tuple[Table, ...]

    @property
    def cells(self) -> list[Cell]:
        return [cell for table in self.tables for line in table.lines for cell in line.cells]


@dataclass(frozen=True)
class Subject:
    """One picture of one prompt, as each variant draws it."""

    prompt: str
    seed: int
    cells: tuple[Cell, ...]

    @property
    def note(self) -> str:
        return f"seed {self.seed}"


def compare(batch: Json, jobs: Sequence[Json]) -> Comparison:
    """The comparison that a batch is; its jobs come in their order. Raises Failure where it has more than two axes."""
    changed = shown_axes(batch)
    labels = [[label(axis, values) for values in axis.values] for axis in changed]
    if len(labels) < 2:
        (columns,) = labels or [[batch["model"]]]
        lines = [Line(each.prompt, each.note, each.cells) for each in subjects(jobs, columns)]
        tables = [Table("", "", tuple(columns), tuple(lines))]
    else:
        down, across = labels
        names = [f"{row}, {column}" for row in down for column in across]
        tables = [
            Table(each.prompt, each.note, tuple(across), tuple(rows(down, each.cells)))
            for each in subjects(jobs, names)
        ]
    defaults = {name.replace("_", " "): str(value) for name, value in batch["defaults"].items() if value is not None}
    return Comparison({**defaults, "batch": batch["id"]}, tuple(tables))


def shown_axes(batch: Json) -> tuple[Axis, ...]:
    found = axes(batch["matrix"])
    if len(found) > 2:
        raise Failure(f"Batch {batch['id']} changes {len(found)} things at once; a grid shows two.")
    return found


def subjects(jobs: Sequence[Json], variants: Sequence[str]) -> list[Subject]:
    """Prompts one after the other: of each, the jobs of all variants stand side by side in the batch."""
    found = []
    for start in range(0, len(jobs), len(variants)):
        alike = jobs[start : start + len(variants)]
        first = alike[0]
        for index, image in enumerate(first["images"]):
            prompt = first["recipe"]["prompt"]
            cells = [cell(job, index, f"{prompt}, {variant}") for job, variant in zip(alike, variants, strict=False)]
            missing = [Cell(f"{prompt}, {variant}", None, "not drawn") for variant in variants[len(alike) :]]
            found.append(Subject(prompt, image["seed"], (*cells, *missing)))
    return found


def rows(titles: Sequence[str], cells: Sequence[Cell]) -> list[Line]:
    width = len(cells) // len(titles)
    return [Line(title, "", tuple(cells[at * width : (at + 1) * width])) for at, title in enumerate(titles)]


def cell(job: Json, index: int, label: str) -> Cell:
    if index >= len(job["images"]):
        return Cell(label, None, "not drawn")
    image = job["images"][index]
    if "path" in image:
        return Cell(f"{label}, seed {image['seed']}", Path(image["path"]))
    return Cell(label, None, fate(image))


def fate(image: Json) -> str:
    match image["state"]:
        case "flagged":
            return "flagged: the safety checker refused it"
        case "failed":
            return f"failed: {reason(image)}"
    return str(image["state"])


def label(axis: Axis, values: Sequence[Any]) -> str:
    return ", ".join(words(field, value) for field, value in zip(axis.fields, values, strict=True))


def words(field: str, value: Any) -> str:
    if value is None:
        return f"usual {field.replace('_', ' ')}"
    return WORDS.get(field, "{}").format(value if not isinstance(value, float) else f"{value:g}")
