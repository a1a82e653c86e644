"""`huafang label`: read the AI labels (GB 45438-2025) of picture files, whoever wrote them. Needs no farm."""

from pathlib import Path
from typing import Any

import click

from cli import sentence
from cli.errors import ERROR, NOT_FOUND, PARTLY, Failure
from cli.shell import Group, Shell
from cli.terminal import Columns, Row
from common.labels.label import label_problems
from common.labels.reader import read_labels

MEANINGS = {"1": "generated", "2": "possibly", "3": "suspected"}
CODES = {"unlabelled": NOT_FOUND, "incomplete": ERROR, "unreadable": ERROR}  # by verdict

ROW: Columns = {
    "file": lambda found: found["file"],
    "verdict": lambda found: found["verdict"],
    "label": lambda found: MEANINGS.get(element(found, "Label"), element(found, "Label")),
    "producer": lambda found: element(found, "ContentProducer"),
    "number": lambda found: element(found, "ProduceID"),
    "where": lambda found: [one["place"] for one in found["labels"]],
    "problems": lambda found: found["problems"],
}


def element(found: Row, name: str) -> str:
    """That of the first label."""
    elements: Row = next((one["elements"] for one in found["labels"] if one["elements"]), {})
    return str(elements.get(name, ""))


@click.group(cls=Group)
def label() -> None:
    """AI labels in the metadata of pictures, as GB 45438-2025 wants them."""


@label.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.pass_obj
def verify(shell: Shell, files: tuple[Path, ...]) -> None:
    """Read the implicit label of each FILE: PNG, WebP and JPEG, and XMP in any other format.

    Exit codes: 0 all are labelled, 4 none has a label, 1 a label is incomplete or a file cannot be read, 6 the files
    differ. It does not look at the pixels: a visible label is not found.
    """
    rows = [check(file) for file in files]
    shell.print_rows(rows, ROW, "verdict")
    verdicts = {row["verdict"] for row in rows}
    if verdicts != {"labelled"}:
        bad = sum(row["verdict"] != "labelled" for row in rows)
        codes = {CODES.get(verdict, PARTLY) for verdict in verdicts}
        raise Failure(
            sentence("not_all_labelled", bad=bad, total=len(rows)), codes.pop() if len(codes) == 1 else PARTLY
        )


def check(file: Path) -> dict[str, Any]:
    """What is found in a file: labelled, unlabelled, incomplete or unreadable."""
    try:
        labels = read_labels(file.read_bytes())
    except OSError as error:
        reason = sentence("file_unreadable", file=file, reason=error.strerror)
        return {"file": str(file), "verdict": "unreadable", "labels": [], "problems": [reason]}
    problems = label_problems(labels)
    verdict = "unlabelled" if not labels else "incomplete" if problems else "labelled"
    return {"file": str(file), "verdict": verdict, "labels": [one._asdict() for one in labels], "problems": problems}
