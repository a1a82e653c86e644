"""Pickles of tensors, read without running their code. Imports torch.

Those of a component are refused when they hold anything else, for the libraries read them again, by torch's
`weights_only`. Of a single file, which a training run may have left, the tensors are taken and the rest is left out.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import kinds, layout, sentence, torch_files
from worker.checkpoints.torch_files import Saved, StoredTensor, Unreadable

MOST_SHARED = 4  # bytes of tensors for each byte of their file; tensors may share their storage


def pickled_tensors(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a component's pickle; empty for safetensors. Raises ModelRefused if it has anything else."""
    if file.suffix == ".safetensors":
        return {}
    name = f"{file.parent.name}/{file.name}"
    saved = _read(model, file, name)
    if saved.has_objects:
        raise ModelRefused(sentence("model_pickle_unsafe", model=model.name, file=name))
    return _tensors(model, file, name, saved, saved.content)


def tensors_of(model: Model, file: Path) -> dict[str, torch.Tensor]:
    """Copies of the weights of a single file, and of nothing that a training run saved beside them.

    Raises ModelRefused.
    """
    saved = _read(model, file, file.name)
    content = saved.content if isinstance(saved.content, dict) else {}
    weights = content.get("state_dict", saved.content)
    found = weights if isinstance(weights, dict) else {}
    sizes = {str(key): value.size for key, value in found.items() if isinstance(value, StoredTensor)}
    kinds.check_keys(model, file.name, {**dict.fromkeys(map(str, content), ()), **sizes})
    tensors = _tensors(model, file, file.name, saved, weights)
    return {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def check_pickles(model: Model, folder: Path) -> None:
    for name in layout.components_with_weights(model):
        for file in layout.weight_files(folder / name):
            pickled_tensors(model, file)


def _read(model: Model, file: Path, name: str) -> Saved:
    try:
        if zipfile.is_zipfile(file):
            _check_zip(model, file, name)
        return torch_files.read(file)
    except (Unreadable, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(model, name, error) from error


def _tensors(model: Model, file: Path, name: str, saved: Saved, weights: Any) -> dict[str, torch.Tensor]:
    if weights == {}:
        raise ModelRefused(sentence("model_pickle_empty", model=model.name, file=name))
    if not isinstance(weights, dict) or not all(isinstance(value, StoredTensor) for value in weights.values()):
        raise ModelRefused(sentence("model_pickle_not_tensors", model=model.name, file=name))
    if (declared := sum(value.nbytes for value in weights.values())) > MOST_SHARED * file.stat().st_size:
        raise _inflates(model, file, name, declared)
    try:
        return {str(key): torch_files.tensor(saved, value) for key, value in weights.items()}
    except Unreadable as error:
        raise _damaged(model, name, error) from error


def _check_zip(model: Model, file: Path, name: str) -> None:
    """Check by its directory, before anything is inflated, that it has one pickle and takes no more than its size.

    All readers then find the same pickle; TorchScript has several, and code. torch.save compresses nothing.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if len([member for member in members if member.filename.endswith((".pkl", ".py"))]) != 1:
        raise ModelRefused(sentence("model_pickle_unsafe", model=model.name, file=name))
    if (declared := sum(member.file_size for member in members)) > file.stat().st_size:
        raise _inflates(model, file, name, declared)


def _inflates(model: Model, file: Path, name: str, declared: int) -> ModelRefused:
    size = file.stat().st_size
    return ModelRefused(sentence("model_file_inflates", model=model.name, file=name, bytes=size, declared=declared))


def _damaged(model: Model, name: str, error: Exception) -> ModelRefused:
    reason = layout.first_line(error)
    return ModelRefused(sentence("model_file_damaged", model=model.name, file=name, error=reason))
