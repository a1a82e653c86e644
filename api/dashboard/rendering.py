"""How a screen becomes a page: templates, words in the reader's language, and the headers that keep a page safe.

    page      the whole of it, for a browser that goes there
    live      only its block `live`: what changes while one looks (see `api.live.page_streams`)
    notice    a sentence in answer to an action

Knows no screen. Whatever a template is given is text: it is escaped, and no template marks anything as safe.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.responses import HTMLResponse

from api.dashboard.i18n import LANGUAGES, language_of, translations
from api.dashboard.sessions import Visitor
from api.deps import AppState

HERE = Path(__file__).parent
STATIC = HERE / "static"


def page(
    request: Request, template: str, visitor: Visitor | None = None, status: int = 200, **shown: Any
) -> HTMLResponse:
    """A whole page. `shown` are the template's own values."""
    root = request.scope["root_path"]
    around = {
        "visitor": visitor,
        "here": request.url.path.removeprefix(root) or "/",
        "live_url": f"{root}/live{request.url.path.removeprefix(root)}{_query(request)}",
    }
    text = _template(template, language_of(request)).render(_common(request) | around | shown)
    return HTMLResponse(text, status)


def live(request: Request, template: str, shown: Mapping[str, Any]) -> str:
    """The block `live` of a page, as the page itself would show it."""
    found = _template(template, language_of(request))
    return "".join(found.blocks["live"](found.new_context({**_common(request), **shown})))


def notice(request: Request, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """A part of a page, for htmx to put where the action said."""
    return HTMLResponse(_template(template, language_of(request)).render({**_common(request), **shown}), status)


def wants_part(request: Request) -> bool:
    """Whether htmx asks, for a part of a page that is shown already."""
    return request.headers.get("hx-request") == "true"


def safe_headers(farm: AppState) -> dict[str, str]:
    """No script and no style but our own files, no other host but the image store, nobody's frame."""
    store = urlsplit(farm.settings.s3_public_url or farm.settings.s3_endpoint_url or "https://*.amazonaws.com")
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": f"'self' {store.scheme}://{store.netloc}",
        "connect-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _common(request: Request) -> dict[str, Any]:
    """What every template finds: `ui` are the macros of macros.html, `problem` the words for an error's code."""
    root, language = request.scope["root_path"], language_of(request)
    given = {"root": root, "language": language, "languages": LANGUAGES}
    return {
        **given,
        "ui": _template("macros.html", language).make_module(given),
        "problem": _template("problems.html", language).module.problem,
    }


def _query(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""


def _template(name: str, language: str) -> Any:
    return _environment(language).get_template(name)


@cache
def _environment(language: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # the API starts without

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(translations(language), newstyle=True)  # type: ignore[attr-defined]
    environment.filters |= {"iso": iso, "number": number, "size": size, "duration": duration}
    environment.globals["static"] = static
    return environment


@cache
def static(name: str) -> str:
    """A static file's name and digest: it may be kept for good, and is asked for again when it has changed."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"static/{name}?{digest}"


# How values read, the same in both languages.


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.1f}"


def size(value: int) -> str:
    """Bytes, as 1.2 MB."""
    amount, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def duration(seconds: float) -> str:
    """As 0.4 s, 12 s, 3:05 or 2:03:05."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
