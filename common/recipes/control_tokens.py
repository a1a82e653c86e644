"""Control tokens, such as `</s>`, that a user writes in a prompt are text: for the API's counts and for the models."""

import json

from tokenizers import Tokenizer
from tokenizers.models import Unigram


def read_as_text(tokenizer: Tokenizer) -> None:
    """Make the tokenizer split control tokens in a text as it splits any word. Its own stay where it adds them.

    SentencePiece vocabularies have them among the words. There each gets a space at its end, which no word in a text
    has.
    """
    tokenizer.encode_special_tokens = True
    if not isinstance(tokenizer.model, Unigram):
        return
    content = json.loads(tokenizer.to_str())
    words, controls = content["model"], {token["content"] for token in content["added_tokens"] if token["special"]}
    renamed = [(f"{word} " if word in controls else word, score) for word, score in words["vocab"]]
    if [word for word, _ in renamed] != [word for word, _ in words["vocab"]]:
        tokenizer.model = Unigram(renamed, words["unk_id"], words["byte_fallback"])
