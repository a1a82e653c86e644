"""`huafang dataset`: export batches, list, verify, draw again and delete datasets."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

import click
from pydantic import ValidationError

from cli import sentence
from cli.client import Json, api_path
from cli.commands.rm import WAIT, remove
from cli.download import download, prepare_folder
from cli.errors import CONFLICT, INTERRUPTED, USAGE, Failure, program_name
from cli.options import ByteSize, SplitShare
from cli.shell import Group, Shell, format_bytes
from cli.terminal import Columns, Row, print_line
from cli.watch import byte_progress, show_progress
from common.datasets.layout import SHARD_IMAGES, SUMS, DatasetPlan, ImageFormat, Layout
from common.enums import Tier
from common.errors import pydantic_sentence

if TYPE_CHECKING:
    from cli.verify import Verification

LAYOUTS, IMAGE_FORMATS = get_args(Layout), get_args(ImageFormat)
SHOWN_PROBLEMS = 20
MOST_COMPARED = 200  # datasets of the farm


def pictures(dataset: Row) -> str:
    total = dataset["images"]["total"]
    return f"{dataset['images']['written']}/{'?' if total is None else total}"


ROW: Columns = {
    "id": lambda dataset: dataset["id"],
    "batch": lambda dataset: dataset["batch_id"],
    "state": lambda dataset: dataset["state"],
    "images": pictures,
    "layout": lambda dataset: dataset["layout"],
    "size": lambda dataset: format_bytes(dataset["bytes"]),
    "created": lambda dataset: dataset["created_at"],
}
RECORD: Columns = {
    **ROW,
    "more batches": lambda dataset: ", ".join(dataset.get("batches", [])[1:]) or None,
    "where": lambda dataset: dataset.get("where"),
    "pictures": lambda dataset: dataset["images"]["stored"],
    "splits": lambda dataset: ", ".join(f"{name} {share:g}" for name, share in dataset["splits"].items()),
    "files": lambda dataset: dataset["files"],
    "why": lambda dataset: dataset["error"] and dataset["error"]["message"],
    "stale": lambda dataset: "yes: pictures of it were deleted since" if dataset.get("stale") else None,
    "folder": lambda dataset: dataset.get("folder"),
}
VERIFIED: Columns = {
    "folder": lambda found: found["folder"],
    "files": lambda found: found["files"],
    "images": lambda found: found["rows"],
    "pictures": lambda found: found["pictures"],
    "edited": lambda found: ", ".join(found["edited"]) or None,
    "farm": lambda found: found["farm"] and f"has the same as {found['farm']}",
}

REPLAYED: Columns = {
    "class": lambda found: found["class"],
    "as before": lambda found: "yes" if found["same_class"] else "no",
    "drawn": lambda found: found["drawn"],
    "exact": lambda found: found["exact"],
    "±1": lambda found: found["within_1"],
    "different": lambda found: found["different"],
    "not drawn": lambda found: found["not_drawn"],
    "other weights": lambda found: found["other_weights"],
}


@click.group(cls=Group)
def dataset() -> None:
    """Datasets: the pictures of batches with their metadata, for training and archiving."""


@dataset.command()
@click.argument("batch_ids", metavar="BATCH...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Download it into this folder.")
@click.option(
    "--layout", type=click.Choice(LAYOUTS), default="webdataset", show_default=True, help="The format of the files."
)
@click.option(
    "--split",
    "splits",
    type=SplitShare(),
    multiple=True,
    help="Such as test=0.1: a share of the prompts; the rest is train.",
)
@click.option("--where", help="Only rows of which this is true, such as \"status = 'stored' and steps >= 20\".")
@click.option("--shard-images", type=click.IntRange(1, SHARD_IMAGES), help="The most pictures of a shard.")
@click.option("--shard-size", type=ByteSize(), help="The most bytes of pictures of a shard, such as 500MB.")
@click.option("--image-format", type=click.Choice(IMAGE_FORMATS), help="Write the pictures in this format.")
@click.option("--quality", type=click.IntRange(1, 100), help="Of WebP and JPEG; 90 by default.")
@click.option("--resize", type=click.IntRange(16, 4096), help="Make the shorter side so many pixels, never more.")
@click.option("--overwrite", is_flag=True, help="Replace another dataset in the folder.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="The most seconds to wait.")
@click.pass_obj
def export(
    shell: Shell,
    /,
    batch_ids: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    timeout: float | None,
    **chosen: Any,
) -> None:
    """Export the batches BATCH..., one after the other. The farm writes a dataset of the images that have ended into
    its image store; with --out it is downloaded once it is ready, and checked. Run the same command again to resume an
    interrupted export.
    """
    plan = plan_of(chosen)
    batches = [shell.client.get(api_path("batches", batch_id)) for batch_id in batch_ids]
    if out is not None:
        prepare_folder(out, plan.digest(*ids_of(batches)), overwrite=overwrite)
    found = find_or_submit(shell, batches, plan)
    if out is None:
        return shell.print_record(found, RECORD)
    try:
        found = wait_until_ready(shell, found, timeout)
        with byte_progress(shell, "downloading", found["bytes"]) as advance:
            download(shell.client, found, out, advance)
    except KeyboardInterrupt:
        command = " ".join([program_name(), *sys.argv[1:]])
        raise Failure(sentence("export_interrupted", command=command), INTERRUPTED) from None
    shell.print_record({**found, "folder": str(out)}, RECORD)


def plan_of(chosen: Json) -> DatasetPlan:
    try:
        return DatasetPlan(**{**chosen, "splits": dict(chosen["splits"])})
    except ValidationError as error:
        first = error.errors()[0]
        option = {"splits": "split"}.get(field := str(first["loc"][0]), field.replace("_", "-"))
        raise Failure(sentence("dataset_refused", option=option, reason=pydantic_sentence(first)), USAGE) from None


def ids_of(batches: list[Json]) -> list[UUID]:
    return [UUID(batch["id"]) for batch in batches]


def find_or_submit(shell: Shell, batches: list[Json], plan: DatasetPlan) -> Json:
    """An earlier dataset of this plan, if it has all images of the batches and their retries; else a new one."""
    digest, have_ended = plan.digest(*ids_of(batches)), all(batch["state"] == "ended" for batch in batches)
    retries = {retry for batch in batches for retry in retries_of(shell, batch)}
    stored = 0 if plan.where else sum(batch["images"]["stored"] for batch in batches)
    for found in shell.client.pages("/v1/datasets", 50, batch=batches[0]["id"]):
        is_unfinished = found["state"] in ("waiting", "writing")
        has_all = found["state"] == "ready" and have_ended and found["images"]["stored"] >= stored
        if found.get("stale"):  # it shows pictures that were deleted since
            continue
        if found["plan"] == digest and retries <= set(found["retries"]) and (is_unfinished or has_all):
            return found
    ids = [batch["id"] for batch in batches]
    of = {"batch": ids[0]} if len(ids) == 1 else {"batches": ids}
    return shell.client.submit({**of, **plan.stored}, "/v1/datasets")


def retries_of(shell: Shell, batch: Json) -> Iterator[str]:
    while retry_id := batch["retry_id"]:
        yield retry_id
        batch = shell.client.get(api_path("batches", retry_id))


def wait_until_ready(shell: Shell, found: Json, timeout: float | None) -> Json:
    """The dataset when it is ready. Raises Failure where it has failed, and after `timeout` seconds."""
    with show_progress(shell, describe, bar, line_key=tenth) as show:
        for latest in shell.client.follow_dataset(found["id"], timeout):
            show(found := latest)
    if found["state"] == "failed":
        raise Failure(sentence("dataset_failed", dataset=found["id"], reason=found["error"]["message"]))
    return found


def describe(found: Json) -> str:
    return f"{found['state']}: {pictures(found)} images"


def bar(found: Json) -> Json:
    return {
        "description": describe(found),
        "total": found["images"]["total"],
        "completed": found["images"]["written"],
    }


def tenth(found: Json) -> tuple[str, int]:
    total = found["images"]["total"]
    return found["state"], found["images"]["written"] * 10 // total if total else 0


@dataset.command()
@click.option("--batch", "batch_id", metavar="ID", help="Only datasets of this batch.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The most datasets to list.")
@click.pass_obj
def ls(shell: Shell, batch_id: str | None, limit: int) -> None:
    """List datasets, the newest first."""
    only = {"batch": batch_id} if batch_id else {}
    shell.print_rows(shell.client.pages("/v1/datasets", limit, **only), ROW)


@dataset.command("verify")
@click.argument("what", metavar="DIR|ID")
@click.pass_obj
def verify_(shell: Shell, what: str) -> None:
    """Check every checksum, count and picture of a dataset: of the folder DIR, or of the farm's dataset ID, which is
    downloaded into a temporary folder. Where a farm can be asked, the folder is compared with what it has.
    """
    if not is_id(what) or Path(what).is_dir():
        return verify_folder(shell, Path(what))
    found = shell.client.get(api_path("datasets", what))
    if found["state"] != "ready":
        raise Failure(sentence("dataset_not_ready", dataset=what, state=found["state"]), CONFLICT)
    with tempfile.TemporaryDirectory(prefix="huafang-") as folder:
        with byte_progress(shell, "downloading", found["bytes"]) as advance:
            download(shell.client, found, Path(folder), advance)
        verify_folder(shell, Path(folder), name=what)


@dataset.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--sample", type=click.IntRange(1), default=50, show_default=True, help="The most pictures to draw again."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which ones: the same for the same number.")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), default="bulk", show_default=True)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="The most seconds to wait for a picture.")
@click.pass_obj
def replay(shell: Shell, folder: Path, sample: int, seed: int, tier: str, timeout: float | None) -> None:
    """Draw a sample of the pictures in DIR again on the farm, and say how many are exact, within one level, or
    different, by class of worker. Fails where the same class and weights do not draw the same pictures within one
    level. The jobs stay, as any others.
    """
    try:
        from cli.datasets import replay as replays
    except ImportError:
        raise Failure(sentence("pyarrow_missing")) from None
    samples = replays.take_samples(folder, sample, seed)
    found = []
    for one in replays.replay(shell.client, samples, timeout, tier):
        found.append(one)
        if one.reason:
            shell.print_message(f"{one.key[:12]}: {one.reason}")
    shell.print_rows(replays.summary(found), REPLAYED, name="exact")
    if problems := replays.problems(found):
        raise Failure(sentence("replay_differs", folder=folder, count=problems, sample=len(found)))


@dataset.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@WAIT
@click.pass_obj
def rm(shell: Shell, ids: tuple[str, ...], wait: bool) -> None:
    """Delete datasets with their files, for good. The pictures of their batches stay."""
    remove(shell, "datasets", ids, wait)


def is_id(what: str) -> bool:
    try:
        return bool(UUID(what))
    except ValueError:
        return False


def verify_folder(shell: Shell, folder: Path, name: str | None = None) -> None:
    try:
        from cli.verify import Verification
    except ImportError:
        raise Failure(sentence("pyarrow_missing")) from None
    verification = Verification(folder)
    with byte_progress(shell, "verifying", verification.size()) as advance:
        verification.run(advance)
    same = same_in_farm(shell, verification)
    problems = verification.problems
    for problem in problems[:SHOWN_PROBLEMS]:
        print_line(problem, err=True)
    if problems:
        raise Failure(sentence("dataset_damaged", dataset=name or folder, count=len(problems)))
    for path in verification.edited:
        shell.print_message(sentence("card_edited", path=path))
    counts = {"files": verification.files, "rows": verification.rows, "pictures": verification.pictures}
    found = {"folder": name or str(folder), **counts, "edited": verification.edited, "farm": same}
    shell.print_record(found, VERIFIED, name="folder")


def same_in_farm(shell: Shell, verification: "Verification") -> str | None:
    """The farm's dataset with the same digest. Where it has others of the same plan only, that is a problem."""
    try:
        listed = shell.client.pages("/v1/datasets", MOST_COMPARED, batch=verification.batch_ids[0])
    except Failure as failure:
        shell.print_message(sentence("farm_not_asked", reason=failure.message))
        return None
    digests = {one["digest"]: one["id"] for one in listed if one["plan"] == verification.plan and one["digest"]}
    if not digests:
        shell.print_message(sentence("farm_lacks_dataset"))
    elif verification.digest not in digests:
        verification.problems.append(sentence("farm_differs", file=SUMS))
    return digests.get(verification.digest)
