"""The two languages of the dashboard, and the choice between them: the visitor's, else the browser's.

English is in the templates and the table of sentences, Chinese in `locale/zh_CN/*.po`: a file for each part of the
dashboard. The .po files are compiled in memory at the first use.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request

COOKIE = "huafang_language"
LANGUAGES = {"zh-CN": "中文", "en": "English"}  # the HTML lang → the language in its own words
LOCALE = Path(__file__).parent / "locale"


def language_of(request: Request) -> str:
    chosen = request.cookies.get(COOKIE)
    return chosen if chosen in LANGUAGES else preferred_language(request.headers.get("accept-language", ""))


def preferred_language(accept_language: str) -> str:
    """The language of ours with the greatest weight in the header; English where it names neither."""
    ranges = [one.strip().partition(";") for one in accept_language.lower().split(",")]
    for tag, _, parameters in sorted(ranges, key=lambda one: _weight(one[2]), reverse=True):
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
    from babel.messages.mofile import write_mo  # late: the API starts faster without
    from babel.messages.pofile import read_po
    from babel.support import NullTranslations, Translations

    if language == "en":
        return NullTranslations()
    found = Translations()
    for path in sorted((LOCALE / language.replace("-", "_")).glob("*.po")):
        with open(path, "rb") as file:
            catalog = read_po(file, locale=language.replace("-", "_"))
        compiled = io.BytesIO()
        write_mo(compiled, catalog)
        compiled.seek(0)
        part = Translations(compiled)
        found.merge(part)
        found.plural = part.plural  # merge() keeps the plural rule of English
    return found
