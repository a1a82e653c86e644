"""The two languages of the dashboard, and which of them a visitor reads: his choice, else what his browser asks for.

English stands in the templates themselves; `locale/zh_CN/*.po` holds the Chinese, a file for each part of the house.
They are read as they are: nothing has to be compiled.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request

COOKIE = "huafang_language"
LANGUAGES = {"zh-CN": "中文", "en": "English"}  # as HTML names them → as their readers do
LOCALE = Path(__file__).parent / "locale"


def language_of(request: Request) -> str:
    chosen = request.cookies.get(COOKIE)
    return chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", ""))


def preferred(accept_language: str) -> str:
    """The best of ours that the header names; English where it names neither."""
    asked = [one.strip().partition(";") for one in accept_language.lower().split(",")]
    for tag, _, parameters in sorted(asked, key=lambda one: _weight(one[2]), reverse=True):
        if _weight(parameters) > 0 and (found := {"zh": "zh-CN", "en": "en"}.get(tag.strip().partition("-")[0])):
            return found
    return "en"


def _weight(parameters: str) -> float:
    name, _, value = parameters.strip().partition("=")
    try:
        return float(value) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0


@cache
def translations(language: str) -> Any:
    from babel.messages.mofile import write_mo  # the API starts without
    from babel.messages.pofile import read_po
    from babel.support import NullTranslations, Translations

    if language == "en":
        return NullTranslations()
    found = Translations()
    for path in sorted((LOCALE / language.replace("-", "_")).glob("*.po")):
        with open(path, "rb") as file:
            words = read_po(file, locale=language.replace("-", "_"))
        compiled = io.BytesIO()
        write_mo(compiled, words)
        compiled.seek(0)
        part = Translations(compiled)
        found.merge(part)
        found.plural = part.plural  # an empty one counts as English does
    return found
