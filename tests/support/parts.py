"""The components of tiny checkpoints. Their random weights depend on their names only, so every torch has the same.

The text encoders are BERT, CLIP, and CLIP with a SentencePiece vocabulary of Japanese.
"""

import json
import string
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from sentencepiece import SentencePieceNormalizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.checkpoints import tokenizer

HIDDEN = 32
SIDE = 64  # pixels
POISON = "鸩"  # a prompt with it gives NaN
HANZI = "一上下中人圆形方红色蓝绿黄白黑背景的大小左右山水女孩们打开了另世界门广告水印"
LAYERS = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def text_components(text: str, length: int) -> tuple[Any, Any]:
    """A tokenizer and a text encoder for `length` tokens."""
    return {"bert": _bert, "clip": _clip, "pieces": _pieces}[text](length)


def _bert(length: int) -> tuple[BertTokenizer, BertModel]:
    """A vocabulary in the layout of Chinese BERTs: [PAD] 0, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*string.punctuation, *"，。！？、；：（）《》…", *string.digits, *string.ascii_lowercase]
    words += [f"##{letter}" for letter in string.digits + string.ascii_lowercase]
    words += [*HANZI, POISON]
    words = list(dict.fromkeys(words))
    tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(words)}, model_max_length=length)
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=length, **LAYERS))
    return tokenizer, _amplify(model, poisoned=words.index(POISON))


def _clip(length: int) -> tuple[CLIPTokenizer, CLIPTextModel]:
    tokenizer = clip_tokenizer(length)
    a_byte = tokenizer.tokenize(POISON)[1]  # that no other prompt of the tests has, nor that of the trial picture
    poisoned = tokenizer.convert_tokens_to_ids(a_byte)
    return tokenizer, _amplify(_clip_text_model(len(tokenizer), length), poisoned)


def clip_tokenizer(length: int, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Bytes, inside and at the end of a word, and one word: a hanzi is three tokens."""
    letters = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
    words = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    merges = [("c", "a"), ("ca", "t</w>")]
    vocabulary = {word: at for at, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, pad_token=pad)


class T5Tokenizer:
    """The tokenizer files of rinna's models: a SentencePiece vocabulary, and `tokenizer.json` for the API."""

    PIECES = (
        "▁",
        "▁a",
        "▁the",
        "サラリーマン",
        "肖像画",
        "油絵",
        "の",
        "を",
        "猫",
        "赤い",
        "丸",
        "白",
        *"サラリーマン油絵",
        POISON,
    )

    def __init__(self) -> None:
        kinds = ModelProto.SentencePiece
        rules = SentencePieceNormalizer(
            rule_name="nmt_nfkc", add_dummy_prefix=True, escape_whitespaces=True, remove_extra_whitespaces=True
        )
        proto = ModelProto.FromString(rules.serialized_model_proto())
        proto.pieces.add(piece="<unk>", score=0, type=kinds.UNKNOWN)
        for piece in ("<s>", "</s>", "[PAD]", "[CLS]", "[SEP]", "[MASK]"):
            proto.pieces.add(piece=piece, score=0, type=kinds.CONTROL)
        for piece in dict.fromkeys((*self.PIECES, *string.ascii_lowercase, *string.digits, *"/<>[](),.、。", *HANZI)):
            proto.pieces.add(piece=piece, score=-2 - len(proto.pieces) / 16, type=kinds.NORMAL)
        self.proto = proto

    def __len__(self) -> int:
        return len(self.proto.pieces)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "spiece.model").write_bytes(self.proto.SerializeToString(deterministic=True))
        tokenizer.read_sentencepiece(folder / "spiece.model").save(str(folder / "tokenizer.json"))
        special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]"}
        tokens = {f"{name}_token": token for name, token in {**special, "mask": "[MASK]"}.items()}
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens), "utf-8")
        config = {**tokens, "extra_ids": 0, "additional_special_tokens": [], "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "T5Tokenizer"}), "utf-8")


def _pieces(length: int) -> tuple[T5Tokenizer, CLIPTextModel]:
    tokenizer = T5Tokenizer()
    poison = [piece.piece for piece in tokenizer.proto.pieces].index(POISON)
    return tokenizer, _amplify(_clip_text_model(len(tokenizer), length), poisoned=poison)


def _clip_text_model(words: int, length: int) -> CLIPTextModel:
    """As published: with ids of special tokens that no tokenizer has."""
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return CLIPTextModel(CLIPTextConfig(vocab_size=words, max_position_embeddings=length, **ids, **LAYERS))


def _amplify(model: Any, poisoned: int) -> Any:
    embeddings = randomise(model).get_input_embeddings().weight
    with torch.no_grad():
        embeddings.mul_(50)
        embeddings[poisoned] = torch.nan
    return model


def unet(**settings: Any) -> UNet2DConditionModel:
    unet = randomise(
        UNet2DConditionModel(
            sample_size=SIDE // 8,
            layers_per_block=2,
            block_out_channels=(16, 32, 32, 32),
            cross_attention_dim=HIDDEN,
            attention_head_dim=4,
            norm_num_groups=8,
            **settings,
        )
    )
    with torch.no_grad():  # with random weights the prompt has almost no effect
        for name, weight in unet.named_parameters():
            if ".attn2." in name and name.endswith(("to_v.weight", "to_out.0.weight")):
                weight.mul_(8)
    return unet


def vae() -> AutoencoderKL:
    return randomise(
        AutoencoderKL(
            block_out_channels=(8, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            norm_num_groups=8,
            sample_size=SIDE,
        )
    )


def safety_checker(strict: bool) -> StableDiffusionSafetyChecker:
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {
        "vocab_size": 9,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    checker = randomise(
        StableDiffusionSafetyChecker(
            CLIPConfig(
                text_config={**text, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
                vision_config={**vision, "image_size": 30, "patch_size": 15, "projection_dim": 32},
                projection_dim=32,
            )
        )
    )
    with torch.no_grad():  # thresholds of a cosine
        checker.concept_embeds_weights.fill_(-2 if strict else 1)
        checker.special_care_embeds_weights.fill_(1)
    return checker


def randomise(component: Any) -> Any:
    """Weights that depend on their names only; those with fewer than two dimensions are of normalisations."""
    with torch.no_grad():
        for path, module in component.named_modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight.ndim < 2:
                    weight.fill_(name == "weight")  # of a normalisation
                    continue
                size = 0.02 if isinstance(module, torch.nn.Embedding) else (3 * weight[0].numel()) ** -0.5
                drawn = np.random.RandomState(crc32(f"{path}.{name}".encode())).standard_normal(weight.shape)
                weight.copy_(torch.from_numpy(size * drawn))
    return component


def scale_weights(model: Any, factors: dict[str, float]) -> Any:
    """Weights whose names end so are multiplied."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            for end, factor in factors.items():
                if name.endswith(end):
                    weight.mul_(factor)
    return model
