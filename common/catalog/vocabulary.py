"""The words for what a model can draw, if that is little."""

import re
from dataclasses import dataclass
from functools import cached_property

LATIN = re.compile("[a-z]+")


@dataclass(frozen=True)
class Vocabulary:
    """What a model can draw. A prompt with none of the `words` gets the `advice` as a warning.

    The `other_words` contain one of them and mean something else. Latin words stand by themselves, in either case.
    """

    words: tuple[str, ...]
    advice: str
    other_words: tuple[str, ...] = ()

    def knows(self, prompt: str) -> bool:
        """Whether the prompt has one of the words. At each place the longest word is read."""
        text, place = prompt.lower(), 0
        while place < len(text):
            word = next((word for word in self._by_first.get(text[place], ()) if text.startswith(word, place)), "")
            if word in self._known:
                return True
            place += len(word) or 1
        return not self._known.isdisjoint(LATIN.findall(text))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.words)

    @cached_property
    def _by_first(self) -> dict[str, list[str]]:
        """The words that are not Latin by their first character, long ones first."""
        found: dict[str, list[str]] = {}
        for word in sorted({*self.words, *self.other_words}, key=len, reverse=True):
            if not LATIN.fullmatch(word):
                found.setdefault(word[0], []).append(word)
        return found
