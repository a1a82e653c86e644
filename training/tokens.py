"""The tokenizer: Chinese BERT's, one token for each character: hanzi of common prompts, a few English words."""

import string
import tempfile
from pathlib import Path

from transformers import BertTokenizer

from training.networks import TOKENS
from training.noise import HANZI, MEANINGFUL
from training.words import ENGLISH, TRADITIONAL

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MARKS = "，。！？、；：“”‘’（）《》【】…—～·「」『』　"


def vocabulary() -> list[str]:
    ascii_words = string.digits + string.ascii_lowercase
    pieces = [f"##{character}" for character in ascii_words]
    traditional = [chr(code) for code in TRADITIONAL.values()]
    hanzi = [*HANZI, *traditional, *sorted(character for character in MEANINGFUL if not character.isascii())]
    every = [*SPECIAL, *string.punctuation, *MARKS.strip(), *ascii_words, *pieces, *hanzi, *_english()]
    return list(dict.fromkeys(every))


def _english() -> list[str]:
    tables = [ENGLISH[kind] for kind in ("colours", "shapes", "numbers", "places")]
    phrases = [phrase for table in tables for known in table.values() for phrase in known]
    names = [word for phrase in phrases for word in phrase.split()]
    shapes = [f"{word}s" for known in ENGLISH["shapes"].values() for word in known]
    return [*names, *shapes, "background", "draw", "and", "with", "no", "not", "without"]


def tokenizer() -> BertTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
        return BertTokenizer.from_pretrained(folder, model_max_length=TOKENS, do_lower_case=True)


def numbered(texts: list[str], reader: BertTokenizer) -> list[list[int]]:
    ids: list[list[int]] = reader(texts, padding="max_length", max_length=TOKENS, truncation=True)["input_ids"]
    return ids
