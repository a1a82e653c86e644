"""A SentencePiece vocabulary, which Japanese models have, as a tokenizer of `tokenizers`: one that the API reads too.

transformers makes one by itself, but not of these: it reads a character that it does not know as the end of the text,
and keeps capitals, of which the vocabulary has none. Knows nothing of models.
"""

import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import transformers
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from common.catalog.catalog import Model
from worker.pipelines import checkpoint, tokenizer

SPACE = "▁"


def read(file: Path) -> Tokenizer:
    """Reads what sentencepiece reads in the text in lower case, and ends it.

    Control pieces are in capitals here, so that no text can spell one.
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


def padding(folder: Path) -> str:
    """The piece that fills what a prompt leaves empty, by the files beside the vocabulary."""
    files = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    said = ChainMap(*(json.loads(file.read_text("utf-8")) for file in files if file.is_file()))
    piece = said.get("pad_token", "<pad>")
    return str(piece["content"] if isinstance(piece, dict) else piece).upper()


def load_tokenizer(folder: Path) -> Any:
    """As it was published, but that special tokens in a prompt are text."""
    kind = checkpoint.index(folder.parent)["tokenizer"][1]
    return _of_pieces(folder) if kind == "T5Tokenizer" else _of_transformers(folder)


def _tokenizer(model: Model, folder: Path, text_encoder: Any) -> Any:
    """One that fits its text encoder, and is never longer than that or the catalogue's limit."""
    tokenizer = load_tokenizer(folder)
    known, needed = len(tokenizer), text_encoder.config.vocab_size
    if known != needed:
        raise checkpoint.refused(model, f"its tokenizer knows {known} tokens and its text encoder {needed}")
    longest = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest, model.token_limit)
    return tokenizer


def _of_transformers(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        folder, split_special_tokens=True, trust_remote_code=False, local_files_only=True
    )


def _of_pieces(folder: Path) -> Any:
    """rinna's, which transformers would read in a way of its own: see `worker.pipelines.tokenizer`."""
    made = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(made)) if made.is_file() else tokenizer.read(folder / "spiece.model")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=tokenizer.padding(folder), split_special_tokens=True
    )
