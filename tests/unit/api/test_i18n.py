"""The dashboard's two languages: whatever a template says, it says in both, and nobody is shown the wrong one."""

from collections import Counter
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from api.dashboard.i18n import LOCALE, preferred

TEMPLATES = LOCALE.parent / "templates"
FILES = sorted((LOCALE / "zh_CN").glob("*.po"))


def said() -> set[str]:
    """All that the templates ask a translation of; a plural counts by its singular."""
    found = set()
    methods = [("**.html", "jinja2.ext:babel_extract")]
    for _, _, message, *_ in extract_from_dir(
        TEMPLATES, method_map=methods, options_map={"**.html": {"trimmed": "true"}}
    ):
        found.add(message[0] if isinstance(message, tuple) else message)
    return found


def translated(path: Path) -> dict[str, list[str]]:
    with open(path, "rb") as file:
        catalog = read_po(file, locale="zh_CN")
    return {
        one.id if isinstance(one.id, str) else one.id[0]: [one.string]
        if isinstance(one.string, str)
        else list(one.string)
        for one in catalog
        if one.id and not one.fuzzy
    }


def test_whatever_is_said_is_said_in_chinese_too() -> None:
    known = {message: words for path in FILES for message, words in translated(path).items()}
    assert said() - {message for message, words in known.items() if all(words)} == set()


def test_no_translation_is_left_of_what_is_no_longer_said() -> None:
    known = Counter(message for path in FILES for message in translated(path))
    assert known.keys() - said() == set()
    assert [message for message, times in known.items() if times > 1] == []


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh-TW", "zh-CN"),
        ("de, en;q=0.7, zh;q=0.8", "zh-CN"),
        ("en-GB;q=0.9, zh;q=0.1", "en"),
        ("zh;q=0, fr", "en"),
        ("zh;q=nonsense, *", "en"),
        (";;;,,,", "en"),
    ],
)
def test_the_reader_s_language_is_the_first_of_ours_that_he_reads(header: str, language: str) -> None:
    assert preferred(header) == language
