"""Folds text, so that words are found in whatever disguise they come: wide letters, marks, look-alikes, other scripts.

Each character is folded by itself, by one table: NFKC, case, no marks, Latin look-alikes (Unicode TR39), traditional to
simplified. So time is linear in the text, and text grows at most MOST_OF_ONE times. Folded text is for matching only:
nobody is shown it. Knows no rules.
"""

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import groupby

MOST_OF_ONE = 3  # characters that one is folded into; what NFKC makes more of is a sign (an Arabic one becomes 18)
NOISE, BLANK, SEPARATOR = "\0", " ", "\n"  # a sign within words, a space, a sign between the parts of a prompt
SEPARATORS = frozenset(",;:!?、。")
IDEOGRAPHIC = "\u2e80"  # from here on words are not separated by spaces
BLANK_AT_HANZI = re.compile(" (?=[\u2e80-\U0003ffff])|(?<=[\u2e80-\U0003ffff]) ")
BORDER = re.compile("(?<=[0-9a-z])(?=[\u2e80-\U0003ffff])|(?<=[\u2e80-\U0003ffff])(?=[0-9a-z])")
# Kana that look like hanzi; TR39 has them, the tables for Latin do not.
LOOK_LIKE_HANZI = str.maketrans("エカタトニハヘロー", "工力夕卜二八へ口一")


def views(text: str) -> tuple[str, ...]:
    """What a text may say: with spaces for its signs, without its signs, and its spaced-out letters as words.

    In the second, spaces go too where a hanzi is, and the parts of a prompt are lines: 白色，情侣 has no 色情, while
    色*情 and 色 情 have. In the third only characters that stand alone are joined: `n u d e`, 色，情.
    """
    folded = _fold(text)
    spaced = " ".join(folded.replace(NOISE, BLANK).split())
    joined = SEPARATOR.join(filter(None, map(_join, folded.replace(NOISE, "").split(SEPARATOR))))
    tokens = BORDER.sub(BLANK, joined).split()
    runs = (list(run) for is_single, run in groupby(tokens, lambda token: len(token) == 1) if is_single)
    spelled = " ".join("".join(run) for run in runs if len(run) > 1)
    return tuple(dict.fromkeys(view for view in (spaced, joined, spelled) if view))


def fold_term(term: str) -> tuple[str, ...]:
    """A term as it is found in a view; one of several Latin words also without spaces."""
    folded = _fold(term).replace(SEPARATOR, BLANK)
    joined = _join(folded.replace(NOISE, "" if _is_ideographic(folded) else BLANK))
    return tuple(dict.fromkeys(filter(None, (joined, joined.replace(BLANK, "")))))


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).translate(_table())


def _join(part: str) -> str:
    return BLANK_AT_HANZI.sub("", " ".join(part.split()))


def is_word_character(character: str) -> bool:
    """Whether a word goes on with it: hanzi and their like are words by themselves."""
    return character.isalnum() and character < IDEOGRAPHIC


def _is_ideographic(text: str) -> bool:
    return any(character.isalnum() and character >= IDEOGRAPHIC for character in text)


class _Table(dict[int, str]):
    """Of each character that is not itself when it is folded, what it becomes; "" for what nobody sees."""

    def __missing__(self, code: int) -> str:
        return chr(code) if unicodedata.category(chr(code))[0] in "LN" else NOISE  # private and unassigned ones


@lru_cache(1)
def _table() -> _Table:
    import disarm
    import opencc

    characters = [
        character
        for character in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(character) not in ("Cc", "Cn", "Co", "Cs")
    ]
    folded = [_plain(character) for character in characters]
    folded = [
        text if _is_ideographic(text) or text.isascii() else like
        for text, like in zip(folded, _in_bulk(folded, disarm.normalize_confusables), strict=True)
    ]
    simplified = _in_bulk([text.translate(LOOK_LIKE_HANZI) for text in folded], opencc.OpenCC("t2s").convert)
    table = _Table(dict.fromkeys(range(33), BLANK) | {ord("\n"): SEPARATOR, ord("\r"): SEPARATOR})
    table.update(
        (ord(character), become)
        for character, text in zip(characters, simplified, strict=True)
        if (become := _kept(character, text.casefold())) != character
    )
    return table


def _plain(character: str) -> str:
    """NFKC, without case and marks."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", character).casefold())
    return unicodedata.normalize("NFC", "".join(one for one in text if unicodedata.category(one)[0] != "M"))


def _in_bulk(texts: Iterable[str], convert: Callable[[str], str]) -> list[str]:
    """Each text converted by itself, by one call, which takes a thousandth of the time of as many."""
    return convert("\n".join(text.replace("\n", " ") for text in texts)).split("\n")


def _kept(character: str, text: str) -> str:
    """Letters and digits; of the rest, what it is: nothing, a separator or noise."""
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":
        return ""
    if len(text) > MOST_OF_ONE:
        return NOISE
    return "".join(map(_kind, text))


def _kind(character: str) -> str:
    """A letter or digit as it is; the kind of any other character."""
    if character.isalnum():
        return character
    return SEPARATOR if character in SEPARATORS else BLANK if character.isspace() else NOISE
