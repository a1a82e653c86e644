"""Tiny checkpoints of random weights, laid out as Stable Diffusion's: what loads and paints, if only noise.

Bert or CLIP reads the prompt; the layout is today's or that of 2022, in which svjack's and IDEA's Chinese models are.
Two of them are made to misbehave: POISON in a prompt makes a picture of NaN, and a strict checker flags every picture.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from common.catalog import Licence, Model

HIDDEN = 32
SIDE = 64  # pixels
POISON = "鸩"


def make(folder: Path, text: str = "bert", strict: bool = False) -> Path:
    """Write a checkpoint as the libraries installed write it. A strict one flags all that it sees."""
    torch.manual_seed(0)
    tokenizer, text_encoder = _bert() if text == "bert" else _clip()
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": _unet(),
        "vae": _vae(),
        "scheduler": PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        "safety_checker": _checker(strict),
        "feature_extractor": CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    classes = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    _write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **classes})
    return folder


def entry(folder: Path, **changes: Any) -> Model:
    """Its entry in a catalogue."""
    values: dict[str, Any] = {
        "name": "tiny",
        "source": str(folder),
        "folder": folder,
        "family": "stable-diffusion-zh",
        "licence": Licence("none", ""),
        "description": "noise",
        "width": SIDE,
        "height": SIDE,
        "steps": 3,
        "scheduler": "pndm",
        "guidance": 5.0,
        "token_limit": 60,  # less than either tokenizer reads
    }
    return Model(**{**values, **changes})


def as_pickles(folder: Path) -> Path:
    """The same weights in .bin files."""
    for file in list(folder.glob("*/*.safetensors")):
        name = "diffusion_pytorch_model.bin" if file.name.startswith("diffusion") else "pytorch_model.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    return folder


def as_in_2022(folder: Path) -> Path:
    """What diffusers 0.7 and transformers 4.24 left on the hub: pickles, old names, and far fewer settings."""
    as_pickles(folder)
    vocabulary = json.loads((folder / "tokenizer" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), "utf-8")
    _write(folder / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    _write(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "LMSDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
        },
    )
    _write(
        folder / "feature_extractor" / "preprocessor_config.json",
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 30, "resample": 3},
    )
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    _rename(folder / "vae" / "diffusion_pytorch_model.bin", old, only="mid_block.attentions")
    _rename(folder / "safety_checker" / "pytorch_model.bin", {"vision_model.": "vision_model.vision_model."})
    for part in ("text_encoder", "safety_checker"):
        file = folder / part / "pytorch_model.bin"
        torch.save({**torch.load(file), "embeddings.position_ids": torch.arange(77)[None]}, file)
    return folder


def _rename(file: Path, names: dict[str, str], only: str = "") -> None:
    weights = {}
    for key, value in torch.load(file).items():
        for new, old in names.items():
            if only in key:
                key = key.replace(new, old)
        weights[key] = value
    torch.save(weights, file)


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), "utf-8")


def _bert() -> tuple[BertTokenizer, BertModel]:
    """A vocabulary laid out as Chinese BERTs have it: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*string.punctuation, *"，。！？、；：（）《》…", *string.digits, *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.digits + string.ascii_lowercase]
    words += [*"一上下中人圆形方红色蓝绿黄白黑背景的大小左右山水女孩们打开了另世界门", POISON]
    tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(words)}, model_max_length=77)
    model = BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=77,
        )
    )
    _loud(model.embeddings.word_embeddings.weight, poisoned=words.index(POISON))
    return tokenizer, model


def _clip() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Bytes, each alone and at the end of a word: no merges, so a hanzi is three tokens."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: at for at, word in enumerate(words)}, merges=[], model_max_length=77)
    start, end = len(words) - 2, len(words) - 1
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=77,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    a_byte = tokenizer.tokenize(POISON)[1]  # that no other prompt of the tests has
    _loud(model.get_input_embeddings().weight, poisoned=words.index(a_byte))
    return tokenizer, model


def _loud(embeddings: torch.nn.Parameter, poisoned: int) -> None:
    with torch.no_grad():
        embeddings.mul_(50)
        embeddings[poisoned] = torch.nan


def _unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        layers_per_block=1,
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    with torch.no_grad():  # random weights are nearly deaf to the prompt
        for name, weight in unet.named_parameters():
            if ".attn2." in name and name.endswith(("to_v.weight", "to_out.0.weight")):
                weight.mul_(8)
    return unet


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8,
        sample_size=SIDE,
    )


def _checker(strict: bool) -> StableDiffusionSafetyChecker:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {
        "vocab_size": 9,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(
            text_config={**text, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
            vision_config={**vision, "image_size": 30, "patch_size": 15, "projection_dim": 32},
            projection_dim=32,
        )
    )
    with torch.no_grad():  # thresholds of a cosine
        checker.concept_embeds.normal_()
        checker.special_care_embeds.normal_()
        checker.concept_embeds_weights.fill_(-2 if strict else 1)
        checker.special_care_embeds_weights.fill_(1)
    return checker
