"""How many tokens a prompt has for a model, and the words that the model cannot read. Counts as the worker does.

Of a model it reads only the `tokenizer.json`, without torch. Where this host does not have that file nothing is
checked here; the worker checks.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from common.catalog.catalog import Model
from common.errors import FieldError, PromptTooLong
from common.recipes import prompt_weighting, sentence
from common.recipes.recipe import Recipe
from common.sentences import Sentence

MAX_CACHED = 10_000  # texts
TEXTS_PER_CALL = 256  # the tokenizer takes 200 MB for so many of 8,000 characters
NO_TOKEN = -1  # the id of no token
RECHECK_S = 1.0  # between two checks of the tokenizer's file, which an import may write while this process runs


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens of a text, special ones too, and the words that the model has no token for."""

    tokens: int
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class KnownCharacters:
    """The characters of which any text has no unknown word and at most one token each.

    Bulk checking is three to five times as fast with them as with the tokenizer alone. `standalone` are words by
    themselves, whatever is beside them. `all` are those, and the characters that are tokens both at the start of a word
    and inside one; a word of them must not be longer than `max_word_length`.
    """

    standalone: frozenset[str]
    all: frozenset[str]
    max_word_length: int

    def cover(self, text: str) -> bool:
        if len(text) > self.max_word_length:
            return self.standalone.issuperset(text)
        return self.all.issuperset(text)


class TokenCounter:
    """Counts by one tokenizer file. Nothing is truncated or padded; `[SEP]` in a prompt is text, weights are not."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        unknown = self._tokenizer.token_to_id(_unknown_token(json.loads(tokenizer_file.read_text("utf-8"))["model"]))
        self._unknown = NO_TOKEN if unknown is None else unknown
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_special_tokens = self._tokenizer.encode("").ids.count(self._unknown)
        self._cache: dict[str, TokenCount] = {}  # a prompt is counted twice, a negative prompt for every job

    def count(self, text: str) -> TokenCount:
        found = self._cache.get(text)
        if found is None:  # other threads may clear the cache at any moment
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            found = self._cache[text] = self._count(text)
        return found

    def suspects(self, texts: Sequence[str], limit: int) -> Iterator[int]:
        """The positions of the texts that have more than `limit` tokens, or words that are unknown.

        The characters of most texts show that they have neither. The tokenizer reads the rest, many in one call, on
        all cores and without the GIL.
        """
        room = limit - self._special_tokens
        rest = [position for position, text in enumerate(texts) if len(text) > room or not self._characters.cover(text)]
        for start in range(0, len(rest), TEXTS_PER_CALL):
            positions = rest[start : start + TEXTS_PER_CALL]
            encodings = self._tokenizer.encode_batch_fast(
                [prompt_weighting.strip_weights(texts[position]) for position in positions]
            )
            for position, encoding in zip(positions, encodings, strict=True):
                ids = encoding.ids
                if len(ids) > limit or ids.count(self._unknown) > self._unknown_special_tokens:
                    yield position

    @cached_property
    def _characters(self) -> KnownCharacters:
        return known_characters(self._tokenizer)

    def _count(self, text: str) -> TokenCount:
        text = prompt_weighting.strip_weights(text)
        encoding = self._tokenizer.encode(text)
        ids = encoding.ids
        if ids.count(self._unknown) == self._unknown_special_tokens:
            return TokenCount(len(ids), ())
        tokens = zip(ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        spans = [span for id, span, is_special in tokens if id == self._unknown and not is_special]
        return TokenCount(len(ids), tuple(dict.fromkeys(text[start:end] for start, end in spans)))


def known_characters(tokenizer: Tokenizer) -> KnownCharacters:
    """The known characters of a tokenizer of BERT's kind, which splits text character by character; else none."""
    model, normalizer, splitter = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
    is_bert = isinstance(normalizer, BertNormalizer) and isinstance(splitter, BertPreTokenizer)
    if not isinstance(model, WordPiece) or not is_bert:
        return KnownCharacters(frozenset(), frozenset(), 0)
    vocabulary, prefix = tokenizer.get_vocab(with_added_tokens=False), model.continuing_subword_prefix
    standalone, in_words = {" "}, set[str]()
    for character in vocabulary:
        if len(character) > 1:
            continue
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(f"a{character}a"))]
        if pieces == ["a", character, "a"]:
            standalone.add(character)
        elif pieces == [f"a{character}a"] and prefix + character in vocabulary:
            in_words.add(character)
    return KnownCharacters(frozenset(standalone), frozenset(standalone | in_words), model.max_input_chars_per_word)


def _unknown_token(model: dict[str, Any]) -> str:
    """The token for words that the model has no token for; CLIP also ends every text with it."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or ""


def check(recipe: Recipe, model: Model) -> None:
    """Raises PromptTooLong, with an error for each prompt that is."""
    if (counter := counter_for(model)) is None:
        return
    counts = {field: counter.count(getattr(recipe, field)).tokens for field in ("prompt", "negative_prompt")}
    errors = [
        FieldError(field, too_long(tokens, model.name, model.token_limit))
        for field, tokens in counts.items()
        if tokens > model.token_limit
    ]
    if errors:
        raise PromptTooLong.of(errors)


def find_suspects(prompts: Sequence[str], negative_prompt: str, model: Model) -> set[int]:
    """The positions of the prompts for which `check` raises or `warnings` returns something; faster than those."""
    counter = counter_for(model)
    if counter and counter.count(negative_prompt).tokens > model.token_limit:
        return set(range(len(prompts)))
    found = set(counter.suspects(prompts, model.token_limit)) if counter else set[int]()
    if model.vocabulary:
        words = model.vocabulary.words
        found.update(position for position, text in enumerate(prompts) if not any(word in text for word in words))
    return found


def too_long(tokens: int, model: str, limit: int) -> Sentence:
    return sentence("too_many_tokens", tokens=tokens, model=model, limit=limit)


def warnings(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """One sentence for each reason why an image may not show what the prompt says."""
    found: list[str] = []
    if model.vocabulary and not any(word in recipe.prompt for word in model.vocabulary.words):
        found.append(model.vocabulary.advice)
    if (counter := counter_for(model)) and (unknown := counter.count(recipe.prompt).unknown):
        found.append(sentence("words_unknown", model=model.name, words=" ".join(unknown)))
    return tuple(found)


def counter_for(model: Model) -> TokenCounter | None:
    """The counter of a model. None if its tokenizer is not on this host."""
    path = model.source_path or model.import_path
    checked_at, counter = _counters.get(path, (0.0, None))
    if time.monotonic() - checked_at > RECHECK_S:
        file = model.tokenizer_file
        counter = _counter(file, file.stat().st_mtime_ns) if file else None
        _counters[path] = time.monotonic(), counter
    return counter


_counters: dict[Path | None, tuple[float, TokenCounter | None]] = {}  # one `stat` a second, not one for each prompt


@lru_cache(maxsize=64)
def _counter(file: Path, mtime_ns: int) -> TokenCounter:
    return TokenCounter(file)
