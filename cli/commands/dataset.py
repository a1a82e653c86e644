"""`huafang dataset`: export batches, list and verify datasets."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from pydantic import ValidationError

from cli.client import Json, path
from cli.download import check_folder, download
from cli.local import called
from cli.shell import INTERRUPTED, Columns, Failure, Group, Row, Shell
from cli.watch import bar, teller
from common.datasets.layout import DatasetPlan
from common.recipes.recipe import sentence

UNITS = ("bytes", "KB", "MB", "GB", "TB")
LAYOUTS = ("webdataset", "imagefolder", "parquet")
SHOWN_PROBLEMS = 20


def size(count: float | None) -> str | None:
    if count is None:
        return None
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def pictures(dataset: Row) -> str:
    total = dataset["images"]["total"]
    return f"{dataset['images']['written']}/{'?' if total is None else total}"


ROW: Columns = {
    "id": lambda dataset: dataset["id"],
    "batch": lambda dataset: dataset["batch_id"],
    "state": lambda dataset: dataset["state"],
    "images": pictures,
    "layout": lambda dataset: dataset["layout"],
    "size": lambda dataset: size(dataset["bytes"]),
    "created": lambda dataset: dataset["created_at"],
}
RECORD: Columns = {
    **ROW,
    "pictures": lambda dataset: dataset["images"]["stored"],
    "splits": lambda dataset: ", ".join(f"{name} {share:g}" for name, share in dataset["splits"].items()),
    "files": lambda dataset: dataset["files"],
    "why": lambda dataset: dataset["error"] and dataset["error"]["message"],
    "folder": lambda dataset: dataset.get("folder"),
}
VERIFIED: Columns = {
    "folder": lambda found: found["folder"],
    "files": lambda found: found["files"],
    "images": lambda found: found["rows"],
    "pictures": lambda found: found["pictures"],
}


class Share(click.ParamType):
    name = "NAME=SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, _, share = str(value).partition("=")
        try:
            return name, float(share)
        except ValueError:
            self.fail(f"{value} is no share; write test=0.1.", param, ctx)


@click.group(cls=Group)
def dataset() -> None:
    """Datasets: the pictures of a batch with all that is known of them, for training and for keeping."""


@dataset.command()
@click.argument("batch_id", metavar="BATCH")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Bring it into this folder.")
@click.option("--layout", type=click.Choice(LAYOUTS), default="webdataset", show_default=True, help="How files lie.")
@click.option(
    "--split", "splits", type=Share(), multiple=True, help="As test=0.1: a share of the prompts; the rest is train."
)
@click.option("--overwrite", is_flag=True, help="Replace another dataset in the folder.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Give up waiting after that many seconds.")
@click.pass_obj
def export(
    shell: Shell,
    batch_id: str,
    out: Path | None,
    layout: Any,
    splits: tuple[tuple[str, float], ...],
    overwrite: bool,
    timeout: float | None,
) -> None:
    """Export BATCH. The farm writes the dataset into its image store, as far as the batch has come; with --out it is
    downloaded once it is ready, and checked. What broke off goes on when the same is said again.
    """
    plan = plan_of(layout, splits)
    batch = shell.client.get(path("batches", batch_id))
    if out is not None:
        check_folder(out, plan.digest(UUID(batch["id"])), overwrite=overwrite)
    found = the_dataset(shell, batch, plan)
    if out is None:
        return shell.print_record(found, RECORD)
    again = " ".join([called(), *sys.argv[1:]])
    try:
        found = wait(shell, found, timeout)
        with progress(shell, "downloading", found["bytes"]) as tell:
            download(shell.client, found, out, tell)
    except KeyboardInterrupt:
        raise Failure(f"Interrupted; nothing is lost. To go on, say the same again: {again}", INTERRUPTED) from None
    shell.print_record({**found, "folder": str(out)}, RECORD)


def plan_of(layout: Any, splits: tuple[tuple[str, float], ...]) -> DatasetPlan:
    try:
        return DatasetPlan(layout=layout, splits=dict(splits))
    except ValidationError as error:
        raise Failure(f"--split {sentence(error.errors()[0])}.", 2) from None


def the_dataset(shell: Shell, batch: Json, plan: DatasetPlan) -> Json:
    """The one that was asked for before, if it has all that the batch and its retries have by now; else a new one."""
    digest, has_ended = plan.digest(UUID(batch["id"])), batch["state"] == "ended"
    retries = set(retries_of(shell, batch))
    for found in shell.client.pages("/v1/datasets", 50, batch=batch["id"]):
        goes_on = found["state"] in ("waiting", "writing")
        has_all = found["state"] == "ready" and has_ended and found["images"]["stored"] >= batch["images"]["stored"]
        if found["plan"] == digest and retries <= set(found["retries"]) and (goes_on or has_all):
            return found
    return shell.client.submit({"batch": batch["id"], **plan.model_dump()}, "/v1/datasets")


def retries_of(shell: Shell, batch: Json) -> Iterator[str]:
    while retry_id := batch["retry_id"]:
        yield retry_id
        batch = shell.client.get(path("batches", retry_id))


def wait(shell: Shell, found: Json, timeout: float | None) -> Json:
    """The dataset when it is ready. Raises Failure when it cannot be written."""
    with teller(shell, describe, position, news=tenths) as tell:
        for latest in shell.client.follow_dataset(found["id"], timeout):
            tell(found := latest)
    if found["state"] == "failed":
        raise Failure(f"Dataset {found['id']} cannot be written: {found['error']['message']}")
    return found


@contextmanager
def progress(shell: Shell, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, silence elsewhere; told how much more is done."""
    if shell.speaks == "quiet" or not sys.stderr.isatty():
        yield lambda more: None
        return
    with bar() as shown:
        task = shown.add_task(what, total=total)
        yield lambda more: shown.advance(task, more)


def describe(found: Json) -> str:
    return f"{found['state']}: {pictures(found)} images"


def position(found: Json) -> Json:
    return {
        "description": describe(found),
        "total": found["images"]["total"],
        "completed": found["images"]["written"],
    }


def tenths(found: Json) -> tuple[str, int]:
    total = found["images"]["total"]
    return found["state"], found["images"]["written"] * 10 // total if total else 0


@dataset.command()
@click.option("--batch", "batch_id", metavar="ID", help="Only those of this batch.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most that many.")
@click.pass_obj
def ls(shell: Shell, batch_id: str | None, limit: int) -> None:
    """List datasets, the newest first."""
    only = {"batch": batch_id} if batch_id else {}
    shell.print_rows(shell.client.pages("/v1/datasets", limit, **only), ROW)


@dataset.command("verify")
@click.argument("what", metavar="DIR|ID")
@click.pass_obj
def verify_(shell: Shell, what: str) -> None:
    """Check every checksum, count and picture of a dataset: of the folder DIR, or of the dataset ID in the farm, which
    is brought into a temporary folder for that.
    """
    if not is_id(what) or Path(what).is_dir():
        return check(shell, Path(what))
    found = shell.client.get(path("datasets", what))
    if found["state"] != "ready":
        raise Failure(f"Dataset {what} is {found['state']}; it can be verified once it is ready.", 5)
    with tempfile.TemporaryDirectory(prefix="huafang-") as folder:
        with progress(shell, "downloading", found["bytes"]) as tell:
            download(shell.client, found, Path(folder), tell)
        check(shell, Path(folder), name=what)


def is_id(what: str) -> bool:
    try:
        return bool(UUID(what))
    except ValueError:
        return False


def check(shell: Shell, folder: Path, name: str | None = None) -> None:
    try:
        from cli.verify import Verification
    except ImportError:
        raise Failure("Verifying needs pyarrow: pip install 'huafang[datasets]'.") from None
    verification = Verification(folder)
    with progress(shell, "verifying", verification.size()) as tell:
        verification.run(tell)
    problems = verification.problems
    for problem in problems[:SHOWN_PROBLEMS]:
        click.echo(problem, err=True)
    if problems:
        raise Failure(f"{name or folder} is not as it was written: {len(problems)} problems.")
    counts = {"files": verification.files, "rows": verification.rows, "pictures": verification.pictures}
    shell.print_record({"folder": name or str(folder), **counts}, VERIFIED, name="folder")
