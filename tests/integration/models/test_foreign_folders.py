"""What foreign and broken folders get: the picture of the plain one, or one sentence. None runs code."""

import codecs
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.models.test_cli import change
from tests.support import checkpoints, foreign
from tests.support.foreign import LFS, READ, Make, Plain, Rows, save

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
SHARD, INDEX = (
    "diffusion_pytorch_model-0000{number}-of-00002.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
FP16_SHARD = "diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors"
FP16_INDEX = "diffusion_pytorch_model.safetensors.index.fp16.json"
VAE, CHECKER = "vae/diffusion_pytorch_model.safetensors", "safety_checker/model.safetensors"


# Folders that are read


def variant(name: str, suffix: str = "safetensors") -> Make:
    def rename(folder: Path) -> None:
        if suffix == "bin":
            checkpoints.as_pickles(folder)
        for file in list(folder.glob(f"*/*.{suffix}")):
            file.rename(file.with_name(f"{file.stem}.{name}.{suffix}"))

    return rename


def halves(folder: Path) -> None:
    for file in list(folder.glob("*/*.safetensors")):
        save(file.with_name(f"{file.stem}.fp16.safetensors"), {k: v.half() for k, v in load_file(file).items()})
        file.unlink()


def in_shards(shard: str, index: str, suffix: str = "safetensors", keeps_whole: bool = False) -> Make:
    """The UNet in two files. `shard` is the name of one, with its number, and `index` that of their index."""

    def split(folder: Path) -> None:
        weights = load_file(folder / UNET)
        if not keeps_whole:
            (folder / UNET).unlink()
        names = {key: shard.format(number=at % 2 + 1) for at, key in enumerate(weights)}
        for name in set(names.values()):
            part, file = {k: v for k, v in weights.items() if names[k] == name}, folder / "unet" / name
            save(file, part) if suffix == "safetensors" else torch.save(part, file)
        write(folder / "unet" / index, {"metadata": {"total_size": 1}, "weight_map": names})

    return split


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content), "utf-8")


def mark(*names: str) -> Make:
    def add(folder: Path) -> None:
        for file in (file for name in names for file in folder.glob(name)):
            file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())

    return add


def in_utf16(folder: Path) -> None:
    for name in ("model_index.json", "unet/config.json"):
        (folder / name).write_text((folder / name).read_text("utf-8"), "utf-16")


def lines_of_windows(folder: Path) -> None:
    checkpoints.as_in_2022(folder)
    file = folder / "tokenizer/vocab.txt"
    file.write_bytes(codecs.BOM_UTF8 + file.read_bytes().replace(b"\n", b"\r\n"))


def with_adapter(component: str) -> Make:
    """A LoRA beside the weights, as PEFT saves it, which transformers would load too."""

    def add(folder: Path) -> None:
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["query"], "task_type": None}
        write(folder / component / "adapter_config.json", {**config, "base_model_name_or_path": "../../elsewhere"})
        layer = "base_model.model.encoder.layer.0.attention.self.query"
        weights = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(32, 2)}
        save(folder / component / "adapter_model.safetensors", weights)

    return add


def text_weights(turn: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Make:
    return lambda folder: save(folder / TEXT, turn(load_file(folder / TEXT)))


def of_masked_lm(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = {"bias": torch.zeros(9), "transform.dense.weight": torch.zeros(3, 3)}
    body = {f"bert.{key}": value for key, value in weights.items() if not key.startswith("pooler")}
    return {**body, **{f"cls.predictions.{key}": value for key, value in head.items()}}


def masked_lm_of_2020(folder: Path) -> None:
    text_weights(of_masked_lm)(folder)
    checkpoints.as_pickles(folder)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    change(folder / "model_index.json", **{**index, "text_encoder": ["transformers", "BertForMaskedLM"]})
    change(folder / "text_encoder/config.json", architectures=["BertForMaskedLM"])


def with_old_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = dict(weights)
    for now, before in names.items():
        old = {key.replace(now, before): value for key, value in old.items()}
    return old


def padded(rows: Callable[[int], int]) -> Make:
    """The text encoder has this many embeddings for its tokens."""

    def pad(folder: Path) -> None:
        weights = load_file(folder / TEXT)
        embeddings = weights["embeddings.word_embeddings.weight"]
        more = rows(len(embeddings)) - len(embeddings)
        weights["embeddings.word_embeddings.weight"] = torch.cat([embeddings, torch.ones(more, embeddings.shape[1])])
        save(folder / TEXT, weights)
        change(folder / "text_encoder/config.json", vocab_size=len(embeddings) + more)

    return pad


def littered(folder: Path) -> None:
    """What Finder, Git and people leave."""
    (folder / ".git").mkdir()
    for name in ("README.md", "unet/.DS_Store", "unet/._diffusion_pytorch_model.safetensors", "text_encoder/mine.py"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    save(folder / "unet/diffusion_pytorch_model.non_ema.safetensors", {"conv_in.bias": torch.ones(16)})
    save(folder / "unet/diffusion_pytorch_model.fp16.safetensors", {"conv_in.bias": torch.ones(16)})
    change(folder / "model_index.json", requires_safety_checker=True, image_encoder=[None, None])


def steps(*changes: Make) -> Make:
    def make(folder: Path) -> None:
        for step in changes:
            step(folder)

    return make


def without(name: str) -> Make:
    return lambda folder: (folder / name).unlink()


FOLDERS: Rows = {
    "fp16 safetensors only": (variant("fp16"), READ),
    "fp16 safetensors only, in halves": (halves, READ),
    "fp16 pickles only": (variant("fp16", "bin"), READ),
    "bf16 safetensors only": (variant("bf16"), READ),
    "shards": (in_shards(SHARD, INDEX), READ),
    "fp16 shards": (in_shards(FP16_SHARD, FP16_INDEX), READ),
    "fp16 shards of pickles under their old names": (
        in_shards(
            "diffusion_pytorch_model-0000{number}-of-00002.fp16.bin",
            "diffusion_pytorch_model.bin.index.fp16.json",
            "bin",
        ),
        READ,
    ),
    "one file beside fp16 shards": (in_shards(FP16_SHARD, FP16_INDEX, keeps_whole=True), READ),
    "one file beside its shards": (in_shards(SHARD, INDEX, keeps_whole=True), READ),
    "shards without an index": (
        steps(in_shards(SHARD, INDEX), without(f"unet/{INDEX}")),
        "diffusion_pytorch_model.safetensors.index.json, which says where each weight is, cannot be read",
    ),
    "a shard missing": (
        steps(in_shards(SHARD, INDEX), without("unet/diffusion_pytorch_model-00002-of-00002.safetensors")),
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors is missing",
    ),
    "shards of another folder": (
        steps(
            in_shards(SHARD, INDEX),
            lambda f: write(f / "unet" / INDEX, {"metadata": {}, "weight_map": {"conv_in.bias": "../../other.bin"}}),
        ),
        "unet/../../other.bin is missing",
    ),
    "a mark before each JSON": (mark("model_index.json", "*/*.json"), READ),
    "a mark before JSON, and pickles": (
        steps(checkpoints.as_pickles, mark("model_index.json", "*/*.json")),
        READ,
    ),
    "UTF-16": (in_utf16, READ),
    "a vocabulary with a mark and CRLF": (lines_of_windows, READ),
    "an adapter in the text encoder": (with_adapter("text_encoder"), READ),
    "an adapter in the safety checker": (with_adapter("safety_checker"), READ),
    "BERT without a pooler": (
        text_weights(lambda weights: {k: v for k, v in weights.items() if not k.startswith("pooler")}),
        READ,
    ),
    "BERT with a MaskedLM head": (text_weights(of_masked_lm), READ),
    "BertForMaskedLM as pickles": (masked_lm_of_2020, READ),
    "BERT with gamma and beta": (text_weights(with_old_names), READ),
    "embeddings padded to 64": (padded(lambda rows: -(-rows // 64) * 64), READ),
    "embeddings padded to 128": (padded(lambda rows: -(-rows // 128) * 128), READ),
    "embeddings padded to nothing": (padded(lambda rows: -(-rows // 64) * 64 + 64 * 3), "its tokenizer has"),
    "what people leave": (littered, READ),
}

# Folders that are refused


def declared(**classes: Any) -> Make:
    return lambda folder: change(folder / "model_index.json", **classes)


def with_nan(file: str, tensor: str) -> Make:
    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        weights[tensor].fill_(torch.nan)
        save(folder / file, weights)

    return damage


def more_weights(file: str, *keys: str) -> Make:
    return lambda f: save(f / file, {**load_file(f / file), **{key: torch.zeros(1) for key in keys}})


def folder_of(**files: bytes | str) -> Make:
    """Another folder, of these files; `__` in a name is its dot."""

    def make(folder: Path) -> Path:
        place = folder.with_name("other")
        place.mkdir()
        for name, content in files.items():
            (place / name.replace("__", ".")).write_bytes(content.encode() if isinstance(content, str) else content)
        return place

    return make


def deep(folder: Path) -> None:
    (folder / "model_index.json").write_text("[" * 100_000 + "]" * 100_000)


REFUSED_FOLDERS: Rows = {
    "weights of Git LFS": (
        lambda f: (f / UNET).write_bytes(LFS),
        "unet/diffusion_pytorch_model.safetensors is a Git LFS pointer and not the file itself; run `git lfs pull`",
    ),
    "a vocabulary of Git LFS": (
        lambda f: (f / "tokenizer/tokenizer.json").write_bytes(LFS),
        "tokenizer/tokenizer.json is a Git LFS pointer",
    ),
    "an index of Git LFS": (
        lambda f: (f / "model_index.json").write_bytes(LFS),
        "tiny/model_index.json is a Git LFS pointer",
    ),
    "an index that is nested deeply": (deep, "model_index.json cannot be read (it is nested too deeply)"),
    "SDXL": (declared(_class_name="StableDiffusionXLPipeline"), "its files are those of a StableDiffusionXLPipeline"),
    "Stable Diffusion 3": (
        declared(_class_name="StableDiffusion3Pipeline"),
        "it is for StableDiffusion3Pipeline, which this farm does not run",
    ),
    "InstructPix2Pix": (declared(_class_name="StableDiffusionInstructPix2PixPipeline"), "InstructPix2PixPipeline"),
    "a pipeline of its own code": (
        declared(_class_name=["mine", "MyPipeline"]),
        "it wants a pipeline of its own code (mine.MyPipeline), and code of a model is never run",
    ),
    "a component of its own code": (
        declared(unet=["mine", "MyUNet"]),
        "its unet is a MyUNet, not one of UNet2DConditionModel",
    ),
    "another VAE": (
        declared(vae=["diffusers", "AutoencoderTiny"]),
        "its vae is a AutoencoderTiny, not one of AutoencoderKL",
    ),
    "another text encoder": (
        declared(text_encoder=["transformers", "XLMRobertaModel"]),
        "its text_encoder is a XLMRobertaModel, not one of BertModel, BertForMaskedLM, CLIPTextModel",
    ),
    "a UNet for video by its config": (
        lambda f: change(f / "unet/config.json", _class_name="UNetMotionModel"),
        "its unet is a UNet2DConditionModel by model_index.json and a UNetMotionModel by its own configuration",
    ),
    "RoBERTa called BERT": (
        lambda f: change(f / "text_encoder/config.json", model_type="roberta"),
        "its text_encoder is a BertModel by model_index.json and a roberta by its own configuration",
    ),
    "nine channels": (
        lambda f: change(f / "unet/config.json", in_channels=9),
        "unet is an inpainting model (9 input channels)",
    ),
    "eight channels": (
        lambda f: change(f / "unet/config.json", in_channels=8),
        "unet is an InstructPix2Pix (8 input channels)",
    ),
    "seven channels": (
        lambda f: change(f / "unet/config.json", in_channels=7),
        "unet is a UNet of 7 input channels, where the family",
    ),
    "a config of one layer over weights of two": (
        lambda f: change(f / "text_encoder/config.json", num_hidden_layers=1),
        "its text_encoder has 16 weights that its configuration has no place for, encoder.layer.1.attention",
    ),
    "foreign weights in the UNet": (
        more_weights(UNET, "motion.a", "motion.b"),
        "its unet has 2 weights that its configuration has no place for, motion.a among them",
    ),
    "foreign weights in a pickle of the VAE": (
        steps(more_weights(VAE, "loss.logvar"), checkpoints.as_pickles),
        "its vae has 1 weights that its configuration has no place for, loss.logvar among them",
    ),
    "NaN in the checker": (
        with_nan(CHECKER, "concept_embeds_weights"),
        "its safety_checker has weights that are NaN, concept_embeds_weights among them",
    ),
    "NaN in the encoder": (
        with_nan(VAE, "encoder.conv_in.weight"),
        "its vae has weights that are NaN, encoder.conv_in.weight among them",
    ),
    "a ControlNet": (
        folder_of(config__json=json.dumps({"_class_name": "ControlNetModel"})),
        "other is a single component (ControlNetModel); a model is a folder with a model_index.json",
    ),
    "a text encoder": (
        folder_of(config__json=json.dumps({"architectures": ["BertModel"]})),
        "other is a single component (BertModel)",
    ),
    "a LoRA": (folder_of(pytorch_lora_weights__safetensors=b""), "is a LoRA, which changes a model"),
    "a LoRA of PEFT": (folder_of(adapter_config__json="{}"), "is a LoRA, which changes a model"),
    "an embedding": (folder_of(learned_embeds__bin=b""), "is an embedding (textual inversion)"),
    "GGUF files": (folder_of(model__gguf=b"GGUF"), "is quantised (GGUF), which this farm cannot read"),
    "single files": (
        folder_of(model__safetensors=b"", README__md=b""),
        "is no folder of diffusers; download a single file of it (model.safetensors) and import that with --like",
    ),
    "a key in a pickle that takes for ever": (
        lambda f: shutil.move(foreign.endless(checkpoints.as_pickles(f)), f / "vae/diffusion_pytorch_model.bin"),
        "vae/diffusion_pytorch_model.bin is damaged or cut short (it has a key that is no text or number)",
    ),
    "a page for weights": (
        lambda f: (f / UNET).write_bytes(b"<!doctype html>"),
        "unet/diffusion_pytorch_model.safetensors is a page of the web",
    ),
    "a tar for weights": (
        lambda f: shutil.move(foreign.tar(checkpoints.as_pickles(f)), f / "vae/diffusion_pytorch_model.bin"),
        "vae/diffusion_pytorch_model.bin is a tar; if torch wrote it before 2017",
    ),
    "nothing": (folder_of(), "its model_index.json cannot be read"),
}


ROWS = FOLDERS | REFUSED_FOLDERS


@pytest.mark.parametrize("row", ROWS)
def test_what_a_folder_gets(plain: Plain, tmp_path: Path, row: str) -> None:
    foreign.check(plain, tmp_path, *ROWS[row])
