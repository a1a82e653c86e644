"""Replays a dataset: draws a sample of its pictures again on the farm, and compares them with those that it has.

    DIR ──► sample ──► a job for each, of the recipe in its file ──► exact | within 1 | different | not drawn

By class of worker, for only equal classes promise equal pictures. The file of a picture says its recipe, its weights
and the class that has drawn it. Memory holds the sample. Needs pyarrow, so import this module late.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from PIL import Image, ImageChops

from cli import sentence
from cli.client import Client, Json, api_path
from cli.errors import NOT_FOUND, USAGE, Failure
from cli.verify import Verification
from cli.watch import failure_reason
from common.datasets import layout
from common.labels.texts import embedded_texts, read_object

Verdict = Literal["exact", "within 1", "different", "not drawn"]
IMAGES = ("source", "mask")  # of a recipe: in a file they are named by their sha256
NOT_OF_THE_PICTURE = ("diffusers", "huafang", "numpy", "torch")  # the versions in a worker's class


@dataclass(frozen=True)
class Sample:
    """A row of the dataset that is stored, its file, and what that says."""

    row: Mapping[str, Any]
    data: bytes
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Replayed:
    """What became of a sample. `drawn_by`: the class that has drawn it again; None if it was not drawn."""

    key: str
    verdict: Verdict
    drawn_by: str | None = None
    is_same_class: bool = False
    is_same_weights: bool = True
    reason: str | None = None


def take_samples(folder: Path, count: int, seed: int) -> list[Sample]:
    """So many of its pictures, at random; the same ones for the same seed.

    Raises Failure where it holds none, or one that the export wrote in another format or size.
    """
    dataset = Verification(folder)
    known = [(shard, key) for shard in dataset.shards for key in _stored_keys(folder, shard)]
    chosen = set(random.Random(seed).sample(known, min(count, len(known))))
    if not chosen:
        raise Failure(sentence("dataset_without_pictures", folder=folder), NOT_FOUND)
    samples = [
        Sample(row, data, embedded_texts(data))
        for shard in sorted({shard for shard, _ in chosen})
        for row, data in dataset.samples(shard)
        if (shard, row["key"]) in chosen
    ]
    if any(sample.row.get("original_sha256") for sample in samples):
        raise Failure(sentence("replay_of_converted", folder=folder), USAGE)
    return samples


def replay(client: Client, samples: Sequence[Sample], timeout: float | None, tier: str) -> Iterator[Replayed]:
    """Submit all, then wait for each. Raises Failure after `timeout` seconds; the jobs run on."""
    submitted = [(sample, _submit(client, sample, tier)) for sample in samples]
    for sample, job in submitted:
        if isinstance(job, Replayed):
            yield job
            continue
        for latest in client.follow_job(job["id"], timeout):
            job = latest
        yield _compare(client, sample, job["images"][0])


def summary(found: Iterable[Replayed]) -> list[dict[str, Any]]:
    """A row for each class of worker that has drawn: how many pictures are exact, within 1, different, and so on."""
    counts: dict[tuple[str, bool], Counter[str]] = {}
    for one in found:
        count = counts.setdefault((one.drawn_by or "–", one.is_same_class), Counter())
        count["drawn"] += one.verdict != "not drawn"
        count[one.verdict] += 1
        count["other weights"] += not one.is_same_weights
    columns = ("drawn", "exact", "within 1", "different", "not drawn", "other weights")
    return [
        {"class": name, "same_class": is_same, **{column.replace(" ", "_"): count[column] for column in columns}}
        for (name, is_same), count in sorted(counts.items())
    ]


def problems(found: Iterable[Replayed]) -> int:
    """How many pictures are not what their class and weights promise, or were not drawn."""
    return sum(
        one.verdict == "not drawn" or (one.verdict == "different" and one.is_same_class and one.is_same_weights)
        for one in found
    )


def largest_difference(one: bytes, other: bytes) -> int | None:
    """By how many levels any channel of any pixel of two pictures differs; None if their sizes differ."""
    with Image.open(BytesIO(one)) as first, Image.open(BytesIO(other)) as second:
        if first.size != second.size:
            return None
        extrema = ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema()
    return max(int(most) for _, most in extrema)  # type: ignore[misc, str-unpack]


def _stored_keys(folder: Path, shard: str) -> list[str]:
    rows = pq.read_table(folder / layout.metadata_path(shard), columns=["key", "status"]).to_pylist()
    return [row["key"] for row in rows if row["status"] == "stored"]


def _submit(client: Client, sample: Sample, tier: str) -> Json | Replayed:
    """The job; or why there is none."""
    recipe = dict(read_object(sample.texts.get("recipe", "")))
    if not recipe:
        return _not_drawn(sample, sentence("replay_without_recipe"))
    if any(name in recipe for name in IMAGES):
        try:
            known = client.get(api_path("jobs", str(sample.row["job_id"])))["recipe"]
        except Failure:
            return _not_drawn(sample, sentence("replay_source_unknown"))
        recipe |= {name: known[name] for name in IMAGES if name in recipe}
    try:
        return client.submit({**recipe, "seeds": [sample.row["seed"]], "tier": tier})
    except Failure as failure:
        if failure.exit_code in (USAGE, NOT_FOUND):  # of this recipe; anything else ends the command
            return _not_drawn(sample, failure.message)
        raise


def _compare(client: Client, sample: Sample, image: Json) -> Replayed:
    if image["state"] != "stored":
        return _not_drawn(sample, failure_reason(image))
    data = client.download(image)
    texts = embedded_texts(data)
    difference = largest_difference(sample.data, data)
    verdict: Verdict = "exact" if difference == 0 else "within 1" if difference == 1 else "different"
    return Replayed(
        sample.row["key"],
        verdict,
        drawn_by=_class_of(texts),
        is_same_class=texts.get("worker") == sample.texts.get("worker"),
        is_same_weights=texts.get("revision") == sample.texts.get("revision"),
    )


def _not_drawn(sample: Sample, reason: str) -> Replayed:
    return Replayed(sample.row["key"], "not drawn", reason=reason)


def _class_of(texts: Mapping[str, str]) -> str:
    """In words: the device, and what else is not a version."""
    known = read_object(texts.get("worker", ""))
    return ", ".join(f"{name} {known[name]}" for name in known if name not in NOT_OF_THE_PICTURE and known[name])
