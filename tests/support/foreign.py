"""Foreign and broken checkpoints, made from a tiny one, and what each must get: its picture, or a refusal.

Half precision keeps the tiny one's numbers, so all that is read paints alike.
"""

import io
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.catalog.catalog import Model
from common.errors import ModelRefused
from common.recipes.recipe import Recipe
from tests.support import checkpoints
from worker.models import importer
from worker.pipelines import base, registry

READ = "the plain one's picture"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438354725\n"
SLOWEST_S = 60  # on a busy machine; a key that is hashed, or a bomb that is inflated, takes for ever

RECIPE = Recipe(
    prompt="红色的圆形",
    negative_prompt="黑",
    model="tiny",
    width=64,
    height=64,
    steps=2,
    scheduler="pndm",
    guidance=5.0,
    seeds=(1,),
    mode="text2image",
    format="png",
)

Make = Callable[[Path], Any]  # changes a copy of the tiny checkpoint in place, or gives a path beside it
Rows = dict[str, tuple[Make, str]]  # by name: the maker, and READ or a part of the refusal


@dataclass(frozen=True)
class Plain:
    folder: Path
    picture: np.ndarray


def plain(folder: Path) -> Plain:
    checkpoints.make(folder)
    for file in folder.glob("*/*.safetensors"):
        save(file, {key: as_halves(value) for key, value in load_file(file).items()})
    return Plain(folder, painted(load(checkpoints.entry(folder))))


def as_halves(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor


def save(file: Path, weights: Mapping[str, torch.Tensor]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({**weights}, file, {"format": "pt"})
    return file


def check(plain: Plain, place: Path, make: Make, verdict: str) -> None:
    """Make the input in the folder `place`, import it, and compare what it gets."""
    folder = shutil.copytree(plain.folder, place / "tiny")
    made = make(folder)
    source = made if isinstance(made, Path) and made.parent == place else folder
    began = time.monotonic()
    if verdict == READ:
        assert np.abs(painted(imported(source, plain.folder)) - plain.picture).max() <= 1
    else:
        with pytest.raises(ModelRefused) as raised:
            imported(source, plain.folder)
        assert raised.value.message.startswith("The model tiny is refused: ")
        assert verdict in raised.value.message
        assert "\n" not in raised.value.message
        assert not (place / "store" / "tiny").exists()
    assert time.monotonic() - began < SLOWEST_S
    assert not (place / "trace").exists()


def load(model: Model) -> base.Pipeline:
    return registry.load(model, "cpu", threads=1)


def painted(pipeline: base.Pipeline) -> np.ndarray:
    (image,) = pipeline.generate([base.ImageRequest(RECIPE, 1)], lambda step, steps: None)
    assert isinstance(image, base.RenderedImage)
    return image.pixels.astype(int)


def ignore(phase: str, done: int, total: int) -> None:
    """A report of progress."""


def imported(source: Path, like: Path) -> base.Pipeline:
    """As `huafang models import` does, and then a worker."""
    model, store = checkpoints.entry(source), source.parent / "store"
    if source.is_dir():
        return load(importer.ensure_imported(model, store, load, ignore))
    with importer.import_lock(model, store, ignore):
        made = importer.import_model(model, store, load, ignore, like=checkpoints.entry(like))
    return load(importer.with_local_path(model, store, made))


def tar(folder: Path) -> Path:
    with tarfile.open(folder.with_name("a.pth"), "w") as made:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            made.addfile(tarfile.TarInfo(name), io.BytesIO())
    return folder.with_name("a.pth")


def endless(folder: Path) -> Path:
    """A dictionary whose key is a tuple of itself, twice, a hundred times: to hash it takes for ever."""
    key = b")q\x000" + b"h\x00h\x00\x86q\x000" * 100 + b"h\x00"
    with zipfile.ZipFile(folder.with_name("a.ckpt"), "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}" + key + b"K\x01s.")
    return folder.with_name("a.ckpt")
