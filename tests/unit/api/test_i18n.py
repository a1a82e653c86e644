"""The two languages of the dashboard: every text has its translation, and a visitor gets the right language."""

from collections import Counter
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from api import sentence as api_sentence
from api.dashboard import sentence
from api.dashboard.alerts import SEVERITY
from api.dashboard.i18n import LOCALE, preferred_language
from common.queue.workers import IS_SILENT
from worker.render import sentence as worker_sentence

TEMPLATES = LOCALE.parent / "templates"
FILES = sorted((LOCALE / "zh_CN").glob("*.po"))


def texts() -> set[str]:
    """The texts of the templates, of the alerts and of why a worker stops; a plural counts by its singular."""
    found = {sentence.texts[code] for code in SEVERITY}
    found |= {api_sentence.texts["drain_asked"], worker_sentence.texts["stop_requested"], IS_SILENT}
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


def test_every_text_has_a_translation() -> None:
    known = {message: words for path in FILES for message, words in translated(path).items()}
    assert texts() - {message for message, words in known.items() if all(words)} == set()


def test_every_translation_is_used_and_unique() -> None:
    known = Counter(message for path in FILES for message in translated(path))
    assert known.keys() - texts() == set()
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
def test_the_language_is_the_first_of_ours_in_the_header(header: str, language: str) -> None:
    assert preferred_language(header) == language
