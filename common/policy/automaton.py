"""Finds many terms in a text in one pass, by the automaton of Aho and Corasick: linear in the text, whatever it is."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Hit(NamedTuple):
    """A term, by its number, and where it lies."""

    term: int
    start: int
    end: int


class Automaton:
    def __init__(self, terms: Sequence[str]) -> None:
        """The terms are not empty."""
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self._ending: list[tuple[int, ...]] = [()]
        self._lengths = [len(term) for term in terms]
        for number, term in enumerate(terms):
            self._add(number, term)
        self._link()

    def find(self, text: str) -> Iterator[Hit]:
        """Every occurrence of every term."""
        following, fallback, ending, state = self._next, self._fallback, self._ending, 0
        for end, character in enumerate(text, 1):
            while (reached := following[state].get(character)) is None and state:
                state = fallback[state]
            state = reached or 0
            for number in ending[state]:
                yield Hit(number, end - self._lengths[number], end)

    def _add(self, number: int, term: str) -> None:
        state = 0
        for character in term:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self._ending.append(())
            state = self._next[state][character]
        self._ending[state] += (number,)

    def _link(self) -> None:
        """Let each state fall back to that of the longest ending of its text which begins a term."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, reached in self._next[state].items():
                back = self._fallback[state]
                while back and character not in self._next[back]:
                    back = self._fallback[back]
                self._fallback[reached] = self._next[back].get(character, 0)
                self._ending[reached] += self._ending[self._fallback[reached]]
                waiting.append(reached)
