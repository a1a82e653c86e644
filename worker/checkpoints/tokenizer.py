"""The tokenizer of a checkpoint, checked against its text encoder.

SentencePiece vocabularies, which Japanese models have, are read here and not by transformers: it reads an unknown
character as the end of the text, and keeps capitals, which the vocabularies lack.
"""

import math
from collections import ChainMap
from pathlib import Path
from typing import Any

import transformers
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from common.catalog.catalog import Model
from common.errors import ModelRefused
from worker.checkpoints import layout, plain_files, sentence
from worker.checkpoints.text_files import read_object

SPACE = "▁"
PADDED_TO = (64, 128)  # some training runs round the embeddings up to a multiple; no token has the rows in excess


def load_for(model: Model, folder: Path, text_encoder: Any) -> Any:
    """The model's tokenizer, with the shortest limit of its own, the text encoder's and the catalogue's.

    Raises ModelRefused if its vocabulary is not the text encoder's.
    """
    tokenizer = load_tokenizer(folder)
    tokens, expected = len(tokenizer), text_encoder.config.vocab_size
    if expected not in (tokens, *(math.ceil(tokens / multiple) * multiple for multiple in PADDED_TO)):
        raise ModelRefused(sentence("model_vocabulary_mismatch", model=model.name, tokens=tokens, expected=expected))
    longest = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest, model.token_limit)
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer as published, but special tokens in a prompt are text."""
    declared = layout.class_of(folder.parent, folder.name)
    if declared == "T5Tokenizer":
        return _load_sentencepiece(folder)
    if declared == "ChatGLMTokenizer":  # it reads special tokens in a text as text anyway
        return ChatGLMTokenizer.from_pretrained(folder, local_files_only=True)
    with plain_files.view(folder) as files:
        return transformers.AutoTokenizer.from_pretrained(
            files, split_special_tokens=True, trust_remote_code=False, local_files_only=True
        )


def _load_sentencepiece(folder: Path) -> Any:
    converted = folder / "tokenizer.json"
    is_converted = converted.is_file()
    backend = Tokenizer.from_file(str(converted)) if is_converted else read_sentencepiece(folder / "spiece.model")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=_padding_token(folder), split_special_tokens=True
    )


def read_sentencepiece(file: Path) -> Tokenizer:
    """A tokenizer that gives sentencepiece's ids of the lower-case text, and the end token.

    Control tokens are in capitals, so no text can contain one.
    """
    proto = ModelProto.FromString(file.read_bytes())
    plain = (ModelProto.SentencePiece.NORMAL, ModelProto.SentencePiece.USER_DEFINED)
    pieces = [(p.piece if p.type in plain else p.piece.upper(), p.score) for p in proto.pieces]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=proto.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="always")
    end = proto.trainer_spec.eos_id
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </S>", special_tokens=[("</S>", end)])
    return tokenizer


def _padding_token(folder: Path) -> str:
    files = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    settings = ChainMap(*(read_object(file) for file in files if file.is_file()))
    token = settings.get("pad_token", "<pad>")
    return str(token["content"] if isinstance(token, dict) else token).upper()
