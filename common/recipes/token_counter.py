"""How many tokens a prompt has for a model, and the words that the model cannot read. Counts as the worker does.

Of a model it reads only the `tokenizer.json`, without torch. Where this host does not have that file nothing is
checked here; the worker checks.
"""

import json
import sys
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
from common.recipes import control_tokens, prompt_weighting, sentence
from common.recipes.recipe import Recipe
from common.recipes.text_cache import TextCache
from common.sentences import Sentence

MAX_CACHED_BYTES = 16_000_000  # for each tokenizer
CHARACTERS_PER_CALL = 100_000  # the tokenizer takes 100 bytes for each
FIRST_CHARACTERS = 2000  # read first: a long text has too many tokens there already, or is read quickly
NO_TOKEN = -1  # the id of no token
RECHECK_S = 1.0  # between two checks of the tokenizer's file, which an import may write while this process runs


@dataclass(frozen=True)
class TokenCount:
    """The number of tokens of a text, special ones too, and the words that the model has no token for."""

    tokens: int
    unknown: tuple[str, ...]
    is_least: bool = False  # the rest of the text was not read


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
    """Counts by one tokenizer file. Nothing is truncated or padded; `[SEP]` in a prompt is text, weights are not.

    `weighted`: whether the model reads weights at all; else they are text too.
    """

    def __init__(self, tokenizer_file: Path, weighted: bool = True) -> None:
        self._plain = prompt_weighting.strip_weights if weighted else str
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        control_tokens.read_as_text(self._tokenizer)
        unknown = self._tokenizer.token_to_id(_unknown_token(json.loads(tokenizer_file.read_text("utf-8"))["model"]))
        self._unknown = NO_TOKEN if unknown is None else unknown
        self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_special_tokens = self._tokenizer.encode("").ids.count(self._unknown)
        self._cache = TextCache[TokenCount](MAX_CACHED_BYTES, _bytes_of)  # the same negative prompt comes for every job
        self._last_refused: tuple[str, TokenCount] | None = None

    @property
    def cached_bytes(self) -> int:
        return self._cache.bytes

    def count(self, text: str, limit: int = sys.maxsize) -> TokenCount:
        """A text with more tokens than `limit` is not remembered, and is not read to its end if it is long."""
        if found := self._cache.get(text):
            return found
        if (refused := self._last_refused) and refused[0] == text and refused[1].tokens > limit:
            return refused[1]
        found = self._count(text, limit)
        if found.tokens > limit:
            self._last_refused = text, found
        else:
            self._cache.put(text, found)
        return found

    def suspects(self, texts: Sequence[str], limit: int) -> Iterator[int]:
        """The positions of the texts that have more than `limit` tokens, or unknown words, or are very long.

        The characters of most texts show that they have neither. The tokenizer reads the rest, many in one call, on
        all cores and without the GIL.
        """
        room, rest = limit - self._special_tokens, list[int]()
        for position, text in enumerate(texts):
            if len(text) > FIRST_CHARACTERS:
                yield position
            elif len(text) > room or not self._characters.cover(text):
                rest.append(position)
        for positions in _of_bounded_length(rest, texts):
            encodings = self._tokenizer.encode_batch_fast([self._plain(texts[position]) for position in positions])
            for position, encoding in zip(positions, encodings, strict=True):
                ids = encoding.ids
                if len(ids) > limit or ids.count(self._unknown) > self._unknown_special_tokens:
                    yield position

    @cached_property
    def _characters(self) -> KnownCharacters:
        return known_characters(self._tokenizer)

    def _count(self, text: str, limit: int) -> TokenCount:
        text = self._plain(text)
        end = text.rfind(" ", 0, FIRST_CHARACTERS) if len(text) > FIRST_CHARACTERS else 0
        if end > 0 and (least := len(self._ids(text[:end]))) > limit:
            return TokenCount(least, (), is_least=True)
        ids = self._ids(text)
        if len(ids) > limit or ids.count(self._unknown) == self._unknown_special_tokens:
            return TokenCount(len(ids), ())
        encoding = self._tokenizer.encode(text)
        tokens = zip(ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        spans = [span for id, span, is_special in tokens if id == self._unknown and not is_special]
        return TokenCount(len(ids), tuple(dict.fromkeys(text[start:end] for start, end in spans)))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids  # without offsets
        return ids


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


def _bytes_of(count: TokenCount) -> int:
    return sum(map(sys.getsizeof, count.unknown)) + sys.getsizeof(count.unknown)


def _of_bounded_length(positions: Sequence[int], texts: Sequence[str]) -> Iterator[list[int]]:
    """The positions, cut where their texts have CHARACTERS_PER_CALL together."""
    group, characters = list[int](), 0
    for position in positions:
        group.append(position)
        characters += len(texts[position])
        if characters >= CHARACTERS_PER_CALL:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _unknown_token(model: dict[str, Any]) -> str:
    """The token for words that the model has no token for; CLIP also ends every text with it."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or ""


def check(recipe: Recipe, model: Model) -> None:
    """Raises PromptTooLong, with an error for each prompt that is."""
    if (counter := counter_for(model)) is None:
        return
    limit = model.token_limit
    counts = {field: counter.count(getattr(recipe, field), limit) for field in ("prompt", "negative_prompt")}
    errors = [
        FieldError(field, _too_long(count, model.name, limit))
        for field, count in counts.items()
        if count.tokens > limit
    ]
    if errors:
        raise PromptTooLong.of(errors)


def find_suspects(prompts: Sequence[str], negative_prompt: str, model: Model) -> set[int]:
    """The positions of the prompts for which `check` may raise or `warnings` return something; faster than those."""
    counter = counter_for(model)
    if counter and counter.count(negative_prompt, model.token_limit).tokens > model.token_limit:
        return set(range(len(prompts)))
    found = set(counter.suspects(prompts, model.token_limit)) if counter else set[int]()
    if model.vocabulary:
        found.update(position for position, text in enumerate(prompts) if not model.vocabulary.knows(text))
    return found


def _too_long(count: TokenCount, model: str, limit: int) -> Sentence:
    if count.is_least:
        return sentence("far_too_many_tokens", tokens=count.tokens, model=model, limit=limit)
    return sentence("too_many_tokens", tokens=count.tokens, model=model, limit=limit)


def warnings(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """One sentence for each reason why an image may not show what the prompt says."""
    found: list[str] = []
    if model.vocabulary and not model.vocabulary.knows(recipe.prompt):
        found.append(model.vocabulary.advice)
    if (counter := counter_for(model)) and (unknown := counter.count(recipe.prompt, model.token_limit).unknown):
        found.append(sentence("words_unknown", model=model.name, words=" ".join(unknown)))
    return tuple(found)


def counter_for(model: Model) -> TokenCounter | None:
    """The counter of a model. None if its tokenizer is not on this host."""
    path = model.source_path or model.import_path
    checked_at, counter = _counters.get(path, (0.0, None))
    if time.monotonic() - checked_at > RECHECK_S:
        file = model.tokenizer_file
        counter = _counter(file, file.stat().st_mtime_ns, model.facts.weighted) if file else None
        _counters[path] = time.monotonic(), counter
    return counter


_counters: dict[Path | None, tuple[float, TokenCounter | None]] = {}  # one `stat` a second, not one for each prompt


@lru_cache(maxsize=64)
def _counter(file: Path, mtime_ns: int, weighted: bool) -> TokenCounter:
    return TokenCounter(file, weighted)
