"""Pickles of tensors, read without running their code, and refused when they hold anything else. Imports torch."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import layout, sentence

MOST_SHARED = 4  # bytes of tensors for each byte of their file; tensors may share their storage


def pickled_tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle; empty for safetensors. Raises ModelRefused if a pickle has anything else."""
    return {} if file.suffix == ".safetensors" else require_tensors(model, file, unpickle(model, file))


def unpickle(model: Model, file: Path) -> Any:
    """Read a pickle without running its code. Raises ModelRefused."""
    path = _relative(file)
    try:
        if zipfile.is_zipfile(file):
            _check_zip(model, file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except ModelRefused:
        raise
    except pickle.UnpicklingError as error:
        raise ModelRefused(sentence("model_pickle_unsafe", model=model.name, file=path)) from error
    except Exception as error:  # a broken pickle makes the reader raise anything
        reason = layout.first_line(error)
        raise ModelRefused(sentence("model_file_damaged", model=model.name, file=path, error=reason)) from error


def require_tensors(model: Model, file: Path, content: Any) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelRefused(sentence("model_pickle_not_tensors", model=model.name, file=_relative(file)))
    size, declared = file.stat().st_size, sum(tensor.nbytes for tensor in content.values())
    if declared > MOST_SHARED * size:
        raise _inflates(model, file, declared)
    return content


def check_pickles(model: Model, folder: Path) -> None:
    for name in layout.components_with_weights(model):
        for file in layout.weight_files(folder / name):
            pickled_tensors(model, file)


def _check_zip(model: Model, file: Path) -> None:
    """Check by its directory, before anything is inflated, that it has one pickle and takes no more than its size.

    All readers then find the same pickle; TorchScript has several, and code. torch.save compresses nothing.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if len([member for member in members if member.filename.endswith((".pkl", ".py"))]) != 1:
        raise pickle.UnpicklingError
    if (declared := sum(member.file_size for member in members)) > file.stat().st_size:
        raise _inflates(model, file, declared)


def _inflates(model: Model, file: Path, declared: int) -> ModelRefused:
    size = file.stat().st_size
    return ModelRefused(
        sentence("model_file_inflates", model=model.name, file=_relative(file), bytes=size, declared=declared)
    )


def _relative(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
