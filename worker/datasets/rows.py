"""The rows of a dataset: what the tables know of an image, and what its picture says of the worker that painted it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from common.catalog.catalog import Catalog
from common.datasets.layout import Row, item_id
from common.datasets.lifecycle import Job
from common.enums import ImageState
from common.recipes.recipe import Recipe
from worker.datasets import picture_texts

VERSIONS = ("diffusers", "huafang", "numpy", "torch")  # what of a worker's class are versions


@dataclass(frozen=True)
class Item:
    """An image that has ended: its row, and where its picture is if it has one."""

    row: Row
    compatibility: str
    key: str | None
    bytes: int


def items_of(job: Job, split: str, catalog: Catalog) -> Iterator[Item]:
    """The images of a job, in order. What only their pictures know is left open."""
    recipe = Recipe.model_validate(job.recipe)
    model = catalog.models.get(recipe.model)
    for image in job.images:
        row = {
            "key": item_id(recipe, image["index"]),
            "image_id": image["id"],
            "job_id": image["job_id"],
            "index": image["index"],
            "prompt": recipe.prompt,
            "negative_prompt": recipe.negative_prompt,
            "model": recipe.model,
            "model_revision": None,
            "scheduler": recipe.scheduler,
            "steps": recipe.steps,
            "guidance": recipe.guidance,
            "seed": recipe.seeds[image["index"]],
            "width": recipe.width,
            "height": recipe.height,
            "format": recipe.format,
            "sha256": image["sha256"],
            "status": image["state"],
            "error_code": image["error_code"],
            "worker_class": None,
            "versions": None,
            "created_at": job.created_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "render_ms": image["render_ms"],
            "licence": model.licence.name if model else "",
            "split": split,
        }
        yield Item(row, recipe.compatibility, image["key"], image["bytes"] or 0)


def complete(row: Row, picture: bytes) -> None:
    """Enter what the picture says of itself."""
    texts = picture_texts.read(picture)
    known = _object(texts.get("worker", ""))
    row["model_revision"] = texts.get("revision", "")
    row["worker_class"] = _text({name: known[name] for name in known if name not in VERSIONS})
    row["versions"] = _text({name: known[name] for name in known if name in VERSIONS})


def lose(row: Row) -> None:
    """Enter that the picture is not there any more."""
    row.update(status=ImageState.FAILED.value, error_code="picture_lost", sha256=None)


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, sort_keys=True, ensure_ascii=False)
