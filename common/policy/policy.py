"""A policy: rules with terms and patterns, read from the operator's file, and which of them refuses a prompt.

    [[rules]]
    name = "weapons"              what a refused user is told; the terms are not
    terms = ["手枪", "machine gun"]
    patterns = ['\\bak-?47\\b']     of RE2, on folded text
    except = ["玩具手枪"]           phrases in which a term may stand
    fields = ["prompt"]           left out: the negative prompt too

Terms are found in any disguise that `folding` undoes; Latin ones as whole words. Knows no recipes, no jobs and no HTTP.
"""

import hashlib
import tomllib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from ahocorasick_rs import AhoCorasick
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import FieldError, Invalid, RefusedByPolicy, pydantic_sentence
from common.policy import sentence
from common.policy.folding import fold_term, is_word_character, views

PromptField = Literal["prompt", "negative_prompt"]
Phrase = Annotated[str, Field(min_length=1, max_length=200)]
MOST_PATTERNS = 100  # of a rule
PATTERN_MEMORY = 1 << 17  # bytes of a compiled pattern, which bounds its time per character

Match = Callable[[str], Any]


class Rule(BaseModel):
    """One rule, as the operator writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]
    terms: tuple[Phrase, ...] = ()
    patterns: Annotated[tuple[Phrase, ...], Field(max_length=MOST_PATTERNS)] = ()
    exceptions: tuple[Phrase, ...] = Field((), alias="except")
    fields: Annotated[tuple[PromptField, ...], Field(min_length=1)] = ("prompt", "negative_prompt")


class PolicyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[str, Field(pattern=r"^[\w.-]{1,40}$")] | None = None
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


class Hit(NamedTuple):
    """A term, by its number, and where it lies."""

    term: int
    start: int
    end: int


@dataclass(frozen=True)
class _Term:
    rule: Rule
    folded: str
    is_exception: bool


@dataclass(frozen=True, eq=False)
class Policy:
    """The rules in the order of their file. `version`: the file's own, or the beginning of its digest."""

    version: str = ""
    rules: tuple[Rule, ...] = ()
    _terms: tuple[_Term, ...] = ()
    _automaton: AhoCorasick = field(default_factory=lambda: AhoCorasick(()))
    _patterns: tuple[tuple[Rule, Match], ...] = ()

    def require(self, prompt: str, negative_prompt: str = "") -> None:
        """Raises RefusedByPolicy, which names a rule and never what matched."""
        texts: dict[PromptField, str] = {"prompt": prompt, "negative_prompt": negative_prompt}
        for name, text in texts.items():
            if rule := self.refusing_rule(name, text):
                raise self.refusal(name, rule)

    def refusal(self, name: PromptField, rule: str) -> RefusedByPolicy:
        """What is said of a prompt or negative prompt that the rule of this name refuses."""
        error = RefusedByPolicy.of([FieldError(name, sentence("refused", rule=rule, version=self.version))])
        error.rule, error.policy = rule, self.version
        return error

    def refusing_rule(self, name: PromptField, text: str) -> str | None:
        """The first rule that refuses this text in that field; None if all accept it. Takes time linear in the text."""
        if not self.rules or not text:
            return None
        found = set[str]()
        for view in views(text):
            found.update(rule.name for rule in self._rules_with_terms_in(view) if name in rule.fields)
            found.update(rule.name for rule, match in self._patterns if name in rule.fields and match(view))
        return next((rule.name for rule in self.rules if rule.name in found), None)

    def _rules_with_terms_in(self, view: str) -> Iterator[Rule]:
        hits = [hit for hit in find_terms(self._automaton, view) if _is_whole(view, hit)]
        phrases: dict[str, list[Hit]] = {}
        for hit in hits:
            if self._terms[hit.term].is_exception:
                phrases.setdefault(self._terms[hit.term].rule.name, []).append(hit)
        allowed = {name: _Allowed(found) for name, found in phrases.items()}
        for hit in hits:
            term = self._terms[hit.term]
            if not term.is_exception and not (term.rule.name in allowed and allowed[term.rule.name].has(hit)):
                yield term.rule


NO_POLICY = Policy()


def find_terms(automaton: AhoCorasick, text: str) -> Iterator[Hit]:
    """Every occurrence of every term, in the order of their ends. Linear in the text, whatever it is."""
    return (Hit(*found) for found in automaton.find_matches_as_indexes(text, overlapping=True))


def load(file: Path | None) -> Policy:
    """The policy of a file; without one it refuses nothing. Raises Invalid, with a sentence for the operator."""
    if file is None:
        return NO_POLICY
    try:
        data = file.read_bytes()
        parsed = PolicyFile.model_validate(tomllib.loads(data.decode()))
        return _compile(parsed, hashlib.sha256(data).hexdigest())
    except OSError as error:
        reason: str = sentence("file_unreadable", reason=error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))} {pydantic_sentence(first)}"
    except (ValueError, Invalid) as error:
        reason = error.message if isinstance(error, Invalid) else str(error)
    raise Invalid(sentence("file_invalid", file=file, reason=reason))


def _compile(parsed: PolicyFile, digest: str) -> Policy:
    names, terms, patterns = set[str](), list[_Term](), list[tuple[Rule, Match]]()
    for rule in parsed.rules:
        if rule.name in names:
            raise Invalid(sentence("rule_twice", rule=rule.name))
        if not rule.terms and not rule.patterns:
            raise Invalid(sentence("rule_empty", rule=rule.name))
        names.add(rule.name)
        for phrase in (*rule.terms, *rule.exceptions):
            terms += _terms(rule, phrase, is_exception=phrase in rule.exceptions)
        patterns += [(rule, _pattern(rule, pattern)) for pattern in rule.patterns]
    automaton = AhoCorasick([term.folded for term in terms])
    return Policy(parsed.version or digest[:12], parsed.rules, tuple(terms), automaton, tuple(patterns))


def _terms(rule: Rule, phrase: str, *, is_exception: bool) -> list[_Term]:
    if folded := fold_term(phrase):
        return [_Term(rule, one, is_exception) for one in folded]
    raise Invalid(sentence("no_letters", rule=rule.name, term=phrase))


def _pattern(rule: Rule, pattern: str) -> Match:
    import re2

    options = re2.Options()
    options.max_mem, options.log_errors = PATTERN_MEMORY, False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise Invalid(sentence("pattern_invalid", rule=rule.name, pattern=pattern, reason=reason)) from None
    if compiled.search(""):
        raise Invalid(sentence("pattern_matches_nothing", rule=rule.name, pattern=pattern))
    match: Match = compiled.search
    return match


def _is_whole(text: str, hit: Hit) -> bool:
    """Whether no word goes on before or behind it."""
    goes_on_before = hit.start and is_word_character(text[hit.start - 1]) and is_word_character(text[hit.start])
    goes_on = hit.end < len(text) and is_word_character(text[hit.end]) and is_word_character(text[hit.end - 1])
    return not goes_on_before and not goes_on


class _Allowed:
    """Where phrases lie in which terms may stand."""

    def __init__(self, phrases: list[Hit]) -> None:
        """In the order of their ends."""
        self._ends = [phrase.end for phrase in phrases]
        starts = accumulate((phrase.start for phrase in reversed(phrases)), min)
        self._first_starts = list(starts)[::-1]  # of each phrase and those behind it

    def has(self, hit: Hit) -> bool:
        """Whether a phrase begins before the hit and ends behind it."""
        at = bisect_left(self._ends, hit.end)
        return at < len(self._ends) and self._first_starts[at] <= hit.start
