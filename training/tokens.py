"""The tokenizer: Chinese BERT's, one token for each character, with the hanzi of common prompts."""

import string
import tempfile
from pathlib import Path

from transformers import BertTokenizer

from training.captions import HANZI
from training.networks import TOKENS
from training.words import TRADITIONAL

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MARKS = "，。！？、；：“”‘’（）《》【】…—～·「」『』　"


def vocabulary() -> list[str]:
    ascii_words = string.digits + string.ascii_lowercase
    pieces = [f"##{character}" for character in ascii_words]
    traditional = [chr(code) for code in TRADITIONAL.values()]
    every = [*SPECIAL, *string.punctuation, *MARKS.strip(), *ascii_words, *pieces, *HANZI, *traditional]
    return list(dict.fromkeys(every))


def tokenizer() -> BertTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
        return BertTokenizer.from_pretrained(folder, model_max_length=TOKENS, do_lower_case=True)


def numbered(texts: list[str], reader: BertTokenizer) -> list[list[int]]:
    ids: list[list[int]] = reader(texts, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"]
    return ids
