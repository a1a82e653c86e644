"""Weights that no test image shows to be damaged, and files that take more memory than their size."""

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import ModelRefused
from tests.integration.models.test_cli import refusal
from tests.integration.models.test_import import import_
from tests.support import checkpoints
from worker.checkpoints import pickles

CHECKER = "safety_checker/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


def fill(file: Path, tensor: str, value: float) -> None:
    weights = load_file(file)
    weights[tensor].fill_(value)
    save_file(weights, file, {"format": "pt"})


def refusal_of_import(folder: Path) -> str:
    with pytest.raises(ModelRefused) as raised:
        import_(folder.parent / "store", folder)
    assert not (folder.parent / "store" / "tiny").exists()
    return raised.value.message


@pytest.mark.parametrize(
    ("file", "tensor"),
    [(CHECKER, "visual_projection.weight"), (CHECKER, "concept_embeds_weights"), (VAE, "encoder.conv_in.weight")],
)
def test_nan_in_a_safety_checker_or_an_encoder_is_refused(folder: Path, file: str, tensor: str) -> None:
    """A safety checker of NaN flags nothing; text2image needs no encoder."""
    fill(folder / file, tensor, torch.nan)
    reason = f"its {file.partition('/')[0]} has weights that are NaN, {tensor} among them"
    assert reason in refusal(folder)
    assert reason in refusal_of_import(checkpoints.as_pickles(folder))


@pytest.mark.parametrize(
    ("file", "tensor", "reason"),
    [
        (CHECKER, "visual_projection.weight", "its safety checker gives NaN for the test image"),
        (CHECKER, "concept_embeds", "its safety checker gives NaN for the test image"),
        (VAE, "encoder.conv_in.weight", "the encoder of its VAE gives NaN for the test image"),
    ],
)
def test_weights_that_give_nan_are_refused_by_an_import(folder: Path, file: str, tensor: str, reason: str) -> None:
    fill(folder / file, tensor, 3e38)
    assert reason in refusal_of_import(checkpoints.as_pickles(folder))


# Files that would fill the memory


def deflated(file: Path) -> None:
    """The same zip, compressed."""
    torch.save({"a": torch.zeros(1_000_000)}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def one_number(file: Path) -> None:
    """A tensor of 4 GB whose storage is one number."""
    torch.save({"a": torch.zeros(1).expand(10**9)}, file)


def tar(file: Path) -> None:
    """As torch wrote before 2017."""
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (file.parent / name).write_bytes(b"\x80\x02.")
            archive.add(file.parent / name, name)


@pytest.mark.parametrize(
    ("make", "reason"), [(deflated, "4,00"), (one_number, "would take 4,000,000,000 in memory"), (tar, "is damaged")]
)
def test_a_file_that_takes_more_memory_than_its_size_is_refused(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    file = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    file.parent.mkdir()
    make(file)
    with pytest.raises(ModelRefused, match=reason) as raised:
        pickles.pickled_tensors(checkpoints.entry(tmp_path), file)
    assert "\n" not in raised.value.message


def test_tensors_may_share_their_storage(tmp_path: Path) -> None:
    file, tied = tmp_path / "model.bin", torch.zeros(100, 100)
    torch.save({"a": tied, "b": tied, "c": tied[:50]}, file)
    assert len(pickles.pickled_tensors(checkpoints.entry(tmp_path), file)) == 3
