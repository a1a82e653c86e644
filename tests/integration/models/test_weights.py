"""What identifies the weights of a local model: the same on every host, another one after one weight has changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from common.catalog.catalog import Model
from tests.support.stories import CATALOG
from worker.models import importer, weights

MINI = CATALOG.models["mini-zh"]


@pytest.fixture
def copy(tmp_path: Path) -> Model:
    """mini-zh in a folder of its own, without the catalogue's checksums."""
    assert MINI.source_path
    folder = tmp_path / "mini"
    shutil.copytree(MINI.source_path, folder)
    return replace(MINI, source=str(folder), source_path=folder, sha256={})


def change_a_weight(model: Model) -> None:
    assert model.source_path
    file = model.source_path / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_local_model_is_known_by_its_files_wherever_they_are(copy: Model, tmp_path: Path) -> None:
    known = weights.known(MINI, tmp_path / "one", is_stub=False)
    assert known is not None
    assert len(known) == 40
    assert weights.known(copy, tmp_path / "other", is_stub=False) == known
    assert weights.known(copy, tmp_path / "other", is_stub=True) == known, "a stub draws in place of this model"


@pytest.mark.parametrize("is_kept", [True, False])
def test_one_weight_makes_another_model(copy: Model, tmp_path: Path, is_kept: bool) -> None:
    before = weights.known(copy, tmp_path / "store", is_stub=False)
    change_a_weight(copy)
    if not is_kept:
        shutil.rmtree(tmp_path / "store")
    assert weights.known(copy, tmp_path / "store", is_stub=False) != before


def test_a_digest_that_is_kept_is_not_computed_again(
    copy: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = weights.known(copy, tmp_path / "store", is_stub=False)
    monkeypatch.setattr(weights, "_checksum", None)
    assert weights.known(copy, tmp_path / "store", is_stub=False) == known
    (tmp_path / "store" / weights.DIGESTS / "mini-zh.json").write_text("{}")
    with pytest.raises(TypeError):
        weights.known(copy, tmp_path / "store", is_stub=False)


def test_an_import_that_only_copies_it_has_the_same_digest(copy: Model, tmp_path: Path) -> None:
    known = weights.known(copy, tmp_path / "store", is_stub=False)
    with importer.import_lock(copy, tmp_path / "store", lambda *_: None):
        imported = importer.import_model(copy, tmp_path / "store", _load, lambda *_: None)
    assert imported.revision == known


def test_a_model_that_is_nowhere_is_known_once_it_is_imported(tmp_path: Path) -> None:
    nowhere = CATALOG.models["zh-v0"]
    assert weights.known(nowhere, tmp_path, is_stub=False) is None
    assert weights.known(nowhere, tmp_path, is_stub=True) == weights.OF_STUB


def test_another_judge_or_precision_makes_another_class() -> None:
    classes = [
        weights.picture_class({"device": "cpu"}, {}, MINI),
        weights.picture_class({"device": "cuda"}, {}, MINI),
        weights.picture_class({"device": "cpu"}, {"precision": "fp16"}, MINI),
        weights.picture_class({"device": "cpu"}, {}, replace(MINI, safety_checker=False)),
    ]
    assert len(set(classes)) == 4
    assert weights.picture_class({"device": "cpu"}, {}, replace(MINI, name="another")) == classes[0]


def _load(model: Model):  # type: ignore[no-untyped-def]
    from worker.pipelines import registry

    return registry.load(model, "stub")
