"""Which checkpoints load, and which are refused because they are damaged, incomplete or unsafe."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import Invalid, ModelRefused
from common.recipes.recipe import Recipe
from tests.support import checkpoints
from worker.pipelines import device, diffusers_pipeline
from worker.pipelines.base import ImageRequest, Pipeline, RenderedImage

TEXT_WEIGHTS = "text_encoder/model.safetensors"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def render(folder: Path, scheduler: str = "pndm", **changes: Any) -> bytes:
    return render_with(diffusers_pipeline.load(checkpoints.entry(folder, **changes), "cpu", threads=1), scheduler)


def render_with(pipeline: Pipeline, scheduler: str = "pndm") -> bytes:
    recipe = Recipe(
        prompt="红色的圆形",
        negative_prompt="黑",
        model="tiny",
        width=64,
        height=64,
        steps=2,
        scheduler=scheduler,
        guidance=5.0,
        seeds=(1,),
        mode="text2image",
        format="png",
    )
    (image,) = pipeline.generate([ImageRequest(recipe, 1)], lambda step, steps: None)
    assert isinstance(image, RenderedImage)
    return image.pixels.tobytes()


def refusal(folder: Path, **changes: Any) -> str:
    with pytest.raises(ModelRefused) as raised:
        diffusers_pipeline.load(checkpoints.entry(folder, **changes), "cpu", threads=1)
    message = raised.value.message
    assert message.startswith("The model tiny is refused: ")
    assert "\n" not in message
    return message


# What loads


@pytest.mark.parametrize("form", [checkpoints.as_pickles, checkpoints.as_in_2022])
@pytest.mark.parametrize("text", ["bert", "clip", "pieces"])
def test_older_layouts_render_the_same_image(tmp_path: Path, text: str, form: Callable[[Path], Path]) -> None:
    folder = checkpoints.make(tmp_path, text)
    today = [render(folder, scheduler) for scheduler in ("pndm", "ddim")]
    form(folder)
    assert [render(folder, scheduler) for scheduler in ("pndm", "ddim")] == today


def test_without_a_safety_checker_only_if_the_operator_says_so(folder: Path) -> None:
    shutil.rmtree(folder / "safety_checker")
    assert "safety_checker = false" in refusal(folder)
    render(folder, safety_checker=False)


def test_a_model_with_matching_checksums_loads(folder: Path) -> None:
    good = checksums(folder)
    render(folder, sha256=good)
    shutil.rmtree(folder / "safety_checker")
    render(folder, sha256=good, safety_checker=False)


# What is refused


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(Invalid, match="There is no device warp:9 here, only"):
        device.describe("warp:9")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def drop_a_weight(file: Path) -> None:
    weights = load_file(file)
    del weights[sorted(weights)[0]]
    save_file(weights, file, metadata={"format": "pt"})


def pickled(folder: Path, content: Any) -> None:
    checkpoints.as_pickles(folder)
    torch.save(content, folder / "text_encoder" / "pytorch_model.bin")


def one_word_less(folder: Path) -> None:
    checkpoints.as_in_2022(folder)
    vocabulary = folder / "tokenizer" / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text("utf-8").rpartition("\n")[0], "utf-8")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json"),
    "index is no JSON": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json"),
    "index names no classes": (lambda f: change(f / "model_index.json", unet=5), "cannot be loaded"),
    "index is a list": (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json"),
    "no unet": (lambda f: shutil.rmtree(f / "unet"), "no unet"),
    "no scheduler file": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json"),
    "no vocabulary": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "vocab.txt"),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer"),
    "vocabulary too small": (one_word_less, "its tokenizer has"),
    "no weights": (lambda f: (f / UNET_WEIGHTS).unlink(), "unet holds no weights"),
    "weights cut short": (lambda f: cut(f / UNET_WEIGHTS), "unet/diffusion_pytorch_model.safetensors is damaged"),
    "weights empty": (lambda f: (f / TEXT_WEIGHTS).write_bytes(b""), "text_encoder/model.safetensors is empty"),
    "pickle cut short": (
        lambda f: cut(checkpoints.as_pickles(f) / "text_encoder/pytorch_model.bin"),
        "text_encoder/pytorch_model.bin is damaged",
    ),
    "a text weight missing": (lambda f: drop_a_weight(f / TEXT_WEIGHTS), "text_encoder lacks 1 weights, embeddings"),
    "a unet weight missing": (lambda f: drop_a_weight(f / UNET_WEIGHTS), "unet lacks 1 weights, conv_in.bias"),
    "a weight of another shape": (lambda f: change(f / "unet/config.json", cross_attention_dim=16), "cannot be loaded"),
    "another text encoder": (
        lambda f: change(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "its text_encoder is a T5EncoderModel",
    ),
    "numbers in a pickle": (lambda f: pickled(f, {"a": torch.zeros(1), "b": 1}), "no pickle of plain tensors"),
    "a list in a pickle": (lambda f: pickled(f, [torch.zeros(1)]), "no pickle of plain tensors"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_refused_with_the_reason(folder: Path, damage: str) -> None:
    harm, reason = DAMAGE[damage]
    harm(folder)
    assert reason in refusal(folder)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, tmp_path: Path, legacy: bool) -> None:
    trace = tmp_path / "trace"
    pickled(folder, {"a": Evil(trace)})
    file = folder / "text_encoder" / "pytorch_model.bin"
    if legacy:
        file.write_bytes(pickle.dumps({"a": Evil(trace)}, protocol=2))
    assert "could run code" in refusal(folder)
    assert not trace.exists()
    if legacy:
        pickle.loads(file.read_bytes())
        assert trace.exists()  # Python's own reader runs it


def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Mine: pass\n"
    for component in ("tokenizer", "text_encoder", "unet"):
        (folder / component / "mine.py").write_text(code)
    change(
        folder / "tokenizer/tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": ["mine.Mine"] * 2},
    )
    change(folder / "text_encoder/config.json", auto_map={"AutoModel": "mine.Mine"})
    change(folder / "unet/config.json", _class_name="mine.Mine")
    with contextlib.suppress(ModelRefused):
        diffusers_pipeline.load(checkpoints.entry(folder), "cpu", threads=1)
    assert not trace.exists()


def checksums(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_one_flipped_bit_is_found(folder: Path) -> None:
    good = checksums(folder)
    with (folder / UNET_WEIGHTS).open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    assert f"the sha256 of {UNET_WEIGHTS} is not" in refusal(folder, sha256=good)


def test_with_checksums_no_file_may_be_missing_or_added(folder: Path) -> None:
    good = checksums(folder)
    (folder / "vae" / "model.safetensors").write_bytes((folder / UNET_WEIGHTS).read_bytes())
    assert "none of vae/model.safetensors" in refusal(folder, sha256=good)
    (folder / "vae" / "model.safetensors").unlink()
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    assert "tokenizer/tokenizer_config.json is missing" in refusal(folder, sha256=good)
