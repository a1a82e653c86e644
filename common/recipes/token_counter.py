"""How many tokens a prompt has for a model, and what the model cannot read in it. Counts as the worker does.

Knows no more of a model than its `tokenizer.json` (no torch); where that is not on this host it says nothing, and the
worker checks.
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
from common.recipes import prompt_weighting
from common.recipes.recipe import Recipe

MOST_KNOWN = 10_000
AT_ONCE = 256  # texts: those of 8,000 characters are 200 MB as the tokenizer reads them
NONE = -1  # the id of no token
LOOK_AGAIN_S = 1.0  # a model may be imported while this process runs


@dataclass(frozen=True)
class TokenCount:
    """A text as a model reads it: its tokens, with those that frame every text, and the words it has no token for."""

    tokens: int
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Plain:
    """Characters that a tokenizer is sure to read: a text of them has no unknown word, and at most a token for each.

    `alone`: words by themselves, whatever stands beside them. `letters`: those, and tokens at the head of a word and in
    it, so that a word of them is read at worst letter by letter, unless it is too long for the tokenizer.
    """

    alone: frozenset[str]
    letters: frozenset[str]
    longest_word: int

    def holds(self, text: str) -> bool:
        if len(text) > self.longest_word:
            return self.alone.issuperset(text)
        return self.letters.issuperset(text)


class TokenCounter:
    """Reads prompts as the tokenizer in this file does: nothing cut or padded, `[SEP]` is text, weights are not."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        unknown = self._tokenizer.token_to_id(_unknown(json.loads(tokenizer_file.read_text("utf-8"))["model"]))
        self._unknown = NONE if unknown is None else unknown
        self._frame = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._unknown_in_frame = self._tokenizer.encode("").ids.count(self._unknown)
        self._known: dict[str, TokenCount] = {}  # a prompt is asked about twice, a negative one by every job

    def read(self, text: str) -> TokenCount:
        found = self._known.get(text)
        if found is None:  # other threads may clear what is known at any moment
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            found = self._known[text] = self._read(text)
        return found

    def doubtful(self, texts: Sequence[str], limit: int) -> Iterator[int]:
        """The places of those texts that have more tokens than this, or words that are unknown.

        Of most a look at their characters tells that they have neither. The tokenizer takes many of the others at once,
        on all cores, and other threads run meanwhile.
        """
        room = limit - self._frame
        rest = [place for place, text in enumerate(texts) if len(text) > room or not self._plain.holds(text)]
        for start in range(0, len(rest), AT_ONCE):
            places = rest[start : start + AT_ONCE]
            readings = self._tokenizer.encode_batch_fast(
                [prompt_weighting.strip_weights(texts[place]) for place in places]
            )
            for place, reading in zip(places, readings, strict=True):
                ids = reading.ids
                if len(ids) > limit or ids.count(self._unknown) > self._unknown_in_frame:
                    yield place

    @cached_property
    def _plain(self) -> Plain:
        return plain_of(self._tokenizer)

    def _read(self, text: str) -> TokenCount:
        text = prompt_weighting.strip_weights(text)
        found = self._tokenizer.encode(text)
        ids = found.ids
        if ids.count(self._unknown) == self._unknown_in_frame:
            return TokenCount(len(ids), ())
        tokens = zip(ids, found.offsets, found.special_tokens_mask, strict=True)
        spans = [span for id, span, frames in tokens if id == self._unknown and not frames]
        return TokenCount(len(ids), tuple(dict.fromkeys(text[start:end] for start, end in spans)))


def plain_of(tokenizer: Tokenizer) -> Plain:
    """None of its characters, unless it is of BERT's family: that finds the words by one character at a time."""
    model, normalizer, splitter = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
    is_bert = isinstance(normalizer, BertNormalizer) and isinstance(splitter, BertPreTokenizer)
    if not isinstance(model, WordPiece) or not is_bert:
        return Plain(frozenset(), frozenset(), 0)
    words, inside = tokenizer.get_vocab(with_added_tokens=False), model.continuing_subword_prefix
    alone, letters = {" "}, set[str]()
    for one in words:
        if len(one) > 1:
            continue
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(f"a{one}a"))]
        if pieces == ["a", one, "a"]:
            alone.add(one)
        elif pieces == [f"a{one}a"] and inside + one in words:
            letters.add(one)
    return Plain(frozenset(alone), frozenset(alone | letters), model.max_input_chars_per_word)


def _unknown(model: dict[str, Any]) -> str:
    """The token of what the model has no token for; CLIP ends every text with it too."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token") or ""


def check(recipe: Recipe, model: Model) -> None:
    """Raises PromptTooLong, which names the field, the count and the limit."""
    if (counter := counter_of(model)) is None:
        return
    counts = {field: counter.read(getattr(recipe, field)).tokens for field in ("prompt", "negative_prompt")}
    wrong = tuple(
        FieldError(field, too_long(count, model.name, model.token_limit))
        for field, count in counts.items()
        if count > model.token_limit
    )
    if wrong:
        raise PromptTooLong("; ".join(f"{e.field} {e.message}" for e in wrong) + ".", fields=wrong)


def suspects(texts: Sequence[str], negative: str, model: Model) -> set[int]:
    """The places of those prompts that `check` or `warnings` has something to say of: quicker than asking them."""
    counter = counter_of(model)
    if counter and counter.read(negative).tokens > model.token_limit:
        return set(range(len(texts)))
    found = set(counter.doubtful(texts, model.token_limit)) if counter else set[int]()
    if model.vocabulary:
        words = model.vocabulary.words
        found.update(place for place, text in enumerate(texts) if not any(word in text for word in words))
    return found


def too_long(count: int, model: str, limit: int) -> str:
    return f"has {count} tokens; {model} reads at most {limit}"


def warnings(recipe: Recipe, model: Model) -> tuple[str, ...]:
    """One line for each reason why the picture may not show what the prompt says."""
    lines = []
    if model.vocabulary and not any(word in recipe.prompt for word in model.vocabulary.words):
        lines.append(model.vocabulary.advice)
    if (counter := counter_of(model)) and (unknown := counter.read(recipe.prompt).unknown):
        lines.append(f"{model.name} cannot read {' '.join(unknown)} and draws the prompt as if it were not there.")
    return tuple(lines)


def counter_of(model: Model) -> TokenCounter | None:
    """The counter of a model whose tokenizer is on this host."""
    place = model.folder or model.store
    seen, counter = _seen.get(place, (0.0, None))
    if time.monotonic() - seen > LOOK_AGAIN_S:
        file = model.tokenizer_file
        counter = _counter(file, file.stat().st_mtime_ns) if file else None
        _seen[place] = time.monotonic(), counter
    return counter


_seen: dict[Path | None, tuple[float, TokenCounter | None]] = {}  # a million prompts ask, and the file rarely changes


@lru_cache(maxsize=64)
def _counter(file: Path, mtime_ns: int) -> TokenCounter:
    return TokenCounter(file)
