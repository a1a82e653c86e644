"""Imports of what is no Stable Diffusion 1.x: the family told from the files, and pictures as before the import."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from common.catalog import catalog
from tests.conformance.test_pipelines import generate, request_for
from tests.support.twins import inpainting, kolors, sdxl, stable_diffusion_2
from worker.checkpoints import layout
from worker.models import importer
from worker.pipelines import registry
from worker.pipelines.base import Pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FOUND = {
    sdxl: {"family": "sdxl", "scheduler": "euler", "token_limit": 77},
    kolors: {"family": "kolors", "scheduler": "euler", "token_limit": 256},
    inpainting: {"family": "stable-diffusion-inpaint", "scheduler": "pndm", "token_limit": 77},
    stable_diffusion_2: {"family": "stable-diffusion", "scheduler": "ddim", "token_limit": 77},
}
VOCABULARIES = ("merges.txt", "vocab.json")  # older tokenizers have these in place of tokenizer.json


def load(model: Any) -> Pipeline:
    return registry.load(model, "cpu", threads=1)


def as_published(folder: Path) -> Path:
    """With CLIP's vocabularies in files of their own."""
    for file in folder.glob("tokenizer*/tokenizer.json"):
        model = json.loads(file.read_text("utf-8"))["model"]
        merges = [" ".join(pair) for pair in model["merges"]]
        for name, text in zip(
            VOCABULARIES, ("\n".join(["#version: 0.2", *merges, ""]), json.dumps(model["vocab"])), strict=True
        ):
            (file.parent / name).write_text(text, "utf-8")
        file.unlink()
    return folder


@pytest.mark.parametrize("twin", FOUND, ids=lambda twin: twin.NAME)
def test_an_import_tells_the_family_and_changes_no_picture(twin: ModuleType, tmp_path: Path) -> None:
    folder, store = as_published(twin.make(tmp_path / "published")), tmp_path / "store"
    index = {**layout.read_index(folder), "force_zeros_for_empty_prompt": False}  # sdxl's default is the other
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")
    store.mkdir()
    entry = {"source": str(folder), "description": "noise", "licence_url": "", "safety_checker": False}
    model = twin.entry(folder, name="imported", import_path=store / "imported")
    imported = importer.import_model(model, store, load, lambda *progress: None, entry=entry)

    stored = catalog.read_entry("imported", store)
    assert {name: stored[name] for name in FOUND[twin]} == FOUND[twin]
    before, here = load(model), load(importer.with_local_path(model, store, imported))
    requests = [request_for(before, steps=2), request_for(before, steps=2, negative_prompt="黑")]
    for one, other in zip(generate(before, *requests), generate(here, *requests), strict=True):
        assert np.array_equal(one, other)
    before.close()
    here.close()
