"""Every regular expression of the product takes time that is linear in its text, whoever chose the text.

The patterns are found in the source. Each gets texts made for it: a part of what it matches, then one or two of its own
characters again and again, then something that it does not match. The slowest text decides.
"""

import ast
import importlib
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[3]
PACKAGES = ("api", "cli", "common", "embedded", "worker")
METHODS = ("fullmatch", "match", "search", "sub", "split", "findall", "finditer")
ENDS = ("\x01", "\x01 \x01")  # that no pattern names
SHORT, LONGEST = (16, 24, 32, 64, 400), 2**17  # repetitions: to find the slowest text, and at most
MEASURABLE_S = 0.002


@dataclass(frozen=True)
class Use:
    """A pattern and the method that the product calls with it."""

    where: str
    pattern: re.Pattern[Any]
    method: str

    def seconds(self, text: str, tries: int = 1) -> float:
        """CPU time of this thread, so that other processes do not count; the least of several tries."""
        given = text.encode("latin-1") if isinstance(self.pattern.pattern, bytes) else text
        method = getattr(self.pattern, self.method)
        call: Callable[[], Any] = (
            (lambda: method(b"" if isinstance(given, bytes) else "", given))
            if (self.method == "sub")
            else (lambda: list(method(given)) if self.method == "finditer" else method(given))
        )
        found = []
        for _ in range(tries):
            start = time.thread_time()
            call()
            found.append(time.thread_time() - start)
        return min(found)


def uses() -> list[Use]:
    """Of the calls of `re.…` in the source, and of the methods of what `re.compile` made, wherever they are called."""
    found, named, called = list[Use](), dict[str, tuple[str, re.Pattern[Any]]](), dict[str, set[str]]()
    known = set[ast.expr]()
    for path in (path for package in PACKAGES for path in sorted((HOME / package).rglob("*.py"))):
        module, tree = ".".join(path.relative_to(HOME).with_suffix("").parts), ast.parse(path.read_text("utf-8"))
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "re" for node in ast.walk(tree)), path
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=func) as value) if _is_re(
                    func, "compile"
                ):
                    named[name] = f"{module}.{name}", evaluate(value, module)
                    known.add(value)
                case ast.Call(func=ast.Attribute(attr=method) as func, args=[source, *_]) if _is_re(func):
                    where = f"{module}:{node.lineno}"
                    assert method in METHODS or node in known, f"{where} names no pattern"
                    if method in METHODS:
                        found.append(Use(where, re.compile(evaluate(source, module)), method))
                case ast.Attribute(value=ast.Name(id=name), attr=method) if method in METHODS:
                    called.setdefault(name, set()).add(method)
    for name, (where, compiled) in named.items():
        methods = called.get(name) or set()
        assert methods, f"no call of {where} was found"
        found += [Use(where, compiled, method) for method in sorted(methods)]
    return found


def _is_re(func: ast.expr, *names: str) -> bool:
    """Whether it is `re.…`, with one of these names if any are given."""
    is_re = isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name) and func.value.id == "re"
    return is_re and (not names or func.attr in names)  # type: ignore[attr-defined]


def evaluate(node: ast.expr, module: str) -> Any:
    """The value of an expression of a module; imports it only if the expression needs a name of its."""
    code = compile(ast.Expression(node), module, "eval")
    try:
        return eval(code, {"re": re})
    except NameError:
        return eval(code, vars(importlib.import_module(module)))


def samples_of(use: Use) -> list[str]:
    parsed = re._parser.parse(use.pattern.pattern, use.pattern.flags & ~re.UNICODE)  # type: ignore[attr-defined]
    return samples(parsed, 1) + samples(parsed, 0)


def samples(parsed: Any, least: int) -> list[str]:
    """For each alternative a text that the pattern matches, with its optional parts if `least` is 1."""
    found = [""]
    for operation, value in parsed:
        found = [before + here for before in found for here in _sample(str(operation), value, least)][:8]
    return found


def _sample(operation: str, value: Any, least: int) -> list[str]:
    match operation:
        case "LITERAL":
            return [chr(value)]
        case "NOT_LITERAL" | "ANY":
            return ["a"]
        case "IN":
            return [next(character for character in CHARACTERS if _is_in(character, value))]
        case "BRANCH":
            return [one for branch in value[1] for one in samples(branch, least)]
        case "SUBPATTERN":
            return samples(value[3], least)
        case "ATOMIC_GROUP":
            return samples(value, least)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return samples(value[2], least) if value[0] or least else [""]
    return [""]  # an anchor, or a look at what is around


def _is_in(character: str, members: Any) -> bool:
    pattern = re._parser.SubPattern(re._parser.State(), [(re._constants.IN, members)])  # type: ignore[attr-defined]
    return re._compiler.compile(pattern).fullmatch(character) is not None  # type: ignore[attr-defined]


CHARACTERS = [*"1a \\", *map(chr, range(33, 256)), *map(chr, range(33))]


def alphabet(use: Use) -> list[str]:
    """The characters of the pattern, and one of each kind that people send."""
    return list(dict.fromkeys([*"1 a\\(:", *itertools.chain.from_iterable(samples_of(use))]))[:14]


def texts(use: Use) -> Iterator[Callable[[int], str]]:
    """Makers of texts: each gives one of so many repetitions."""
    own = samples_of(use)
    starts = dict.fromkeys(["", "(:", *(sample[:end] for sample in own for end in range(len(sample) + 1))])
    letters = alphabet(use)
    pumps = [*letters, "(:1", "(:1111", ":1)", "(a:1.5)", "(a:", *map("".join, itertools.permutations(letters[:8], 2))]
    for start, pump, end in itertools.product(list(starts)[:30], pumps, ENDS):
        yield lambda count, start=start, pump=pump, end=end: start + pump * count + end  # type: ignore[misc]


def slowness(use: Use, make: Callable[[int], str]) -> tuple[int, float]:
    """More for a text that takes long when it is short."""
    for rank, count in enumerate(SHORT):
        text = make(count)
        if (took := use.seconds(text)) > MEASURABLE_S and (took := use.seconds(text, 3)) > MEASURABLE_S:
            return -rank, took
    return -len(SHORT), took


def ratio(use: Use) -> float:
    """How much longer the slowest text takes when it is twice as long."""
    slowest, count = max(texts(use), key=lambda make: slowness(use, make)), SHORT[0]
    while use.seconds(slowest(count), 2) < MEASURABLE_S:
        if count >= LONGEST:
            return 1.0
        count = count * 3 // 2
    grown = growth(use, slowest(count), slowest(count + 8), 3)
    if grown >= 3:  # exponential: twice the length would never end
        return grown
    return math.sqrt(
        growth(use, slowest(count), slowest(4 * count), 9)
    )  # a longer text shows the difference more clearly


def growth(use: Use, shorter: str, longer: str, limit: float) -> float:
    """How much longer the longer text takes; the least of some measurements, for other processes disturb them."""
    found = math.inf
    for _ in range(6):
        found = min(found, use.seconds(longer, 3) / use.seconds(shorter, 5))
        if found < limit:
            break
    return found


USES = uses()


def test_the_patterns_of_the_product_are_found() -> None:
    assert {"common.recipes.prompt_weighting.SYNTAX", "api.headers.WAIT"} <= {use.where for use in USES}


@pytest.mark.parametrize("use", USES, ids=lambda use: f"{use.where}.{use.method}")
def test_time_is_linear_in_the_text(use: Use) -> None:
    assert ratio(use) < 3


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)", "search"),  # what prompts were read with
        (r"wait\s*=\s*\"?([^\s;\"]*)\"?\s*(;.*)?", "fullmatch"),
        (r"(a|aa)+b", "match"),  # exponential
        (r"\s+$", "search"),
    ],
)
def test_a_pattern_that_is_quadratic_is_noticed(pattern: str, method: str) -> None:
    assert ratio(Use("here", re.compile(pattern), method)) >= 3
