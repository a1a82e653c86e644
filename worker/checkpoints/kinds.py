"""What a file or a folder is that cannot be a model here, told by its first bytes, its keys or its configuration.

A refusal then says what the thing is, and what to do with it, before it is read or downloaded. Raises ModelRefused.
What nobody knows passes, for what reads it will refuse it. Imports no torch.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.catalog import families
from common.catalog.catalog import Model
from common.errors import ModelRefused
from common.sentences import Sentence
from worker.checkpoints import sentence
from worker.checkpoints.kind_of_keys import kind_of_keys
from worker.checkpoints.text_files import read_object

HEAD_BYTES = 512
LONGEST_HEADER = 100_000_000  # of safetensors, as its own reader has it
TAR_MAGIC_AT = 257
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
MAGIC = {
    b"GGUF": sentence("kind_gguf"),
    b"7z\xbc\xaf\x27\x1c": sentence("kind_archive"),
    b"Rar!": sentence("kind_archive"),
    b"\x1f\x8b": sentence("kind_archive"),
    b"ftrt": sentence("kind_tensorrt"),
    b"\x89PNG": sentence("kind_picture"),
    b"\xff\xd8\xff": sentence("kind_picture"),
    b"RIFF": sentence("kind_picture"),
    LFS_POINTER: sentence("kind_lfs_pointer"),
}
PAGE = re.compile(rb"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
ONNX = re.compile(rb"\x08[\x01-\x14]\x12.(pytorch|onnx|tf2onnx|keras|skl)", re.DOTALL)
REPOSITORY_FILES = {  # by the end of a name, in a folder without a model_index.json
    ".gguf": sentence("kind_gguf"),
    ".onnx": sentence("kind_onnx"),
    ".engine": sentence("kind_tensorrt"),
    "adapter_config.json": sentence("kind_lora"),
    "pytorch_lora_weights.safetensors": sentence("kind_lora"),
    "pytorch_lora_weights.bin": sentence("kind_lora"),
    "learned_embeds.safetensors": sentence("kind_embedding"),
    "learned_embeds.bin": sentence("kind_embedding"),
}

MODEL_TYPES = {"BertForMaskedLM": ("bert",), "BertModel": ("bert",), "CLIPTextModel": ("clip", "clip_text_model")}
EDITS = re.compile(r"Edit|Kontext|Pix2Pix")  # in the names of diffusers' pipelines that edit by instruction
OTHER_CHANNELS = {8: sentence("kind_pix2pix"), 9: sentence("kind_inpainting")}


def check_file(model: Model, file: Path, name: str) -> None:
    """Refuse a file of weights that its first bytes show to be something else."""
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES)
    if kind := _kind_of_head(file, head):
        raise _is_other(model, name, kind)


def is_safetensors(file: Path) -> bool:
    """Told by its first bytes: the length of a header of JSON, and its brace."""
    with file.open("rb") as content:
        head = content.read(HEAD_BYTES)
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and length <= LONGEST_HEADER


def check_no_pointer(model: Model, file: Path) -> None:
    """Refuse a text that Git left in place of a file that was not fetched."""
    with file.open("rb") as content:
        is_pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        raise _is_other(model, f"{file.parent.name}/{file.name}", sentence("kind_lfs_pointer"))


def check_keys(model: Model, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file of this name whose tensors show it to be something else."""
    if kind := kind_of_keys(shapes):
        raise _is_other(model, name, kind)


def check_folder(model: Model, folder: Path) -> None:
    """Refuse a folder that is no pipeline of diffusers, if it is known what it is."""
    if (folder / "model_index.json").is_file():
        return check_no_pointer(model, folder / "model_index.json")
    check_names(model, (file.name for file in folder.iterdir()))
    if (file := folder / "config.json").is_file():
        config = _config(file)
        found = config.get("_class_name") or (config.get("architectures") or [None])[0]
        if found:
            raise _is_other(model, folder.name, sentence("kind_component", found=found))


def check_names(model: Model, names: Iterable[str]) -> None:
    """The same, by the names of its files."""
    names = sorted(names)
    if "model_index.json" in names:
        return
    for name in names:
        if kind := next((kind for end, kind in REPOSITORY_FILES.items() if name.endswith(end)), None):
            raise _is_other(model, model.source, kind)
    if "config.json" not in names and (
        single := [name for name in names if name.lower().endswith((".safetensors", ".ckpt"))]
    ):
        raise _is_other(model, model.source, sentence("kind_single_files", file=single[0]))


def check_index(model: Model, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that no family has, before its files are fetched. `layout.check_classes` knows the family."""
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):
        raise ModelRefused(sentence("model_has_own_code", model=model.name, name=".".join(map(str, pipeline))))
    if pipeline is not None and families.of_pipeline(pipeline) is None:
        known = ", ".join(families.families())
        if EDITS.search(str(pipeline)):
            raise ModelRefused(sentence("model_pipeline_edits", model=model.name, pipeline=pipeline, families=known))
        raise ModelRefused(sentence("model_pipeline_unknown", model=model.name, pipeline=pipeline, families=known))


def check_configs(model: Model, folder: Path) -> None:
    """Refuse components whose configurations show that they are not what `model_index.json` says, or another kind."""
    index = read_object(folder / "model_index.json")
    for name in model.facts.components:
        config, declared = _config(folder / name / "config.json"), _declared(index, name)
        found, types = config.get("_class_name"), MODEL_TYPES.get(str(declared), ())
        if declared and found and found != declared:
            raise _contradicted(model, name, declared, found)
        if declared and types and (found := config.get("model_type")) not in (None, *types):
            raise _contradicted(model, name, declared, found)
    denoiser, known = model.facts.denoiser, model.facts.channels
    channels = _config(folder / denoiser / "config.json").get("in_channels", known)
    if known is not None and channels != known:
        other = sentence("kind_channels", channels=channels, family=model.facts.name, known=known)
        raise _is_other(model, denoiser, OTHER_CHANNELS.get(channels or 0, other))


def _contradicted(model: Model, name: str, declared: str, found: Any) -> ModelRefused:
    return ModelRefused(
        sentence("model_class_contradicted", model=model.name, component=name, declared=declared, found=found)
    )


def _declared(index: Mapping[str, Any], name: str) -> str | None:
    """The class of a component by `model_index.json`."""
    entry = index.get(name)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _config(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}  # what loads it refuses it


def _kind_of_head(file: Path, head: bytes) -> Sentence | None:
    if not head:
        return sentence("kind_empty")
    if not head.strip(b"\x00"):
        return sentence("kind_zeros")
    if kind := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None):
        return kind
    if PAGE.match(head):
        return sentence("kind_page")
    if ONNX.match(head):
        return sentence("kind_onnx")
    if head[TAR_MAGIC_AT:].startswith(b"ustar"):
        return sentence("kind_tar")
    if head.startswith(b"PK") and not _is_torch_zip(file):
        return sentence("kind_archive")
    return None


def _is_torch_zip(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return True  # cut short: what reads it says so


def _is_other(model: Model, name: str, kind: Sentence) -> ModelRefused:
    return ModelRefused(sentence("model_is_other", model=model.name, file=name, kind=kind))
