"""A tokenizer of Qwen's kind and its chat, and a Qwen3, as several families have them; tiny, with random weights."""

from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tests.support.parts import HANZI, HIDDEN, LAYERS, randomise, scale_weights

CONTROLS = ("<|im_start|>", "<|im_end|>")
CHAT = (  # Qwen3's, of a message of a user's
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tokenizer(*words: str) -> Qwen2Tokenizer:
    """Bytes, and a token for each hanzi of the tests, for the words of the chat, and for these."""
    vocabulary = {letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))}
    merges = list[tuple[str, str]]()
    for word in (*HANZI, "user", "assistant", "system", *words):
        ((letters, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
        pieces = list(letters)
        for pair in merges:
            _merge(pieces, pair)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            vocabulary["".join(merges[-1])] = len(vocabulary)
            _merge(pieces, merges[-1])
    vocabulary["<|endoftext|>"] = len(vocabulary)
    found = Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=[*CONTROLS])
    found.model_max_length = 131072
    found.chat_template = CHAT
    return found


def _merge(pieces: list[str], pair: tuple[str, str]) -> None:
    """Put this pair together wherever it is, as byte-pair encoding does."""
    at = 0
    while at + 1 < len(pieces):
        if (pieces[at], pieces[at + 1]) == pair:
            pieces[at : at + 2] = ["".join(pair)]
        at += 1


def qwen3(words: int) -> Qwen3Model:
    """Three layers, so that the last but one is not the first."""
    config = Qwen3Config(
        **{**LAYERS, "num_hidden_layers": 3}, vocab_size=words, num_key_value_heads=2, head_dim=HIDDEN // 4
    )
    return amplified(randomise(Qwen3Model(config)))


def amplified(model: Any) -> Any:
    """With random weights a prompt has almost no effect."""
    scale_weights(model, {"embed_tokens.weight": 50, "v_proj.weight": 4, "o_proj.weight": 4, "down_proj.weight": 4})
    return model
