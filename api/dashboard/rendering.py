"""Templates in the reader's language, as responses; and the security headers of every response.

    render_page      a whole page
    render_live      its block `live`: what changes while the page is open (see `api.live.page_streams`)
    render_notice    the answer to an action, as a part of the page that is open

Knows no view. Every value is escaped, and no template marks a value as safe.
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

from api.dashboard import sentence
from api.dashboard.i18n import LANGUAGES, language_of, translations
from api.dashboard.sessions import Visitor
from api.deps import AppState

HERE = Path(__file__).parent
STATIC = HERE / "static"


def render_page(
    request: Request, template: str, visitor: Visitor | None = None, status: int = 200, **values: Any
) -> HTMLResponse:
    """A whole page. `values`: the template's own."""
    root = request.scope["root_path"]
    layout = {
        "visitor": visitor,
        "here": request.url.path.removeprefix(root) or "/",
        "live_url": f"{root}/live{request.url.path.removeprefix(root)}{_query(request)}",
    }
    text = _template(template, language_of(request)).render(_common(request) | layout | values)
    return HTMLResponse(text, status)


def render_live(request: Request, template: str, values: Mapping[str, Any]) -> str:
    """The block `live` of a page."""
    found = _template(template, language_of(request))
    return "".join(found.blocks["live"](found.new_context({**_common(request), **values})))


def render_notice(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A part of a page; the button's `hx-target` names its place."""
    return HTMLResponse(_template(template, language_of(request)).render({**_common(request), **values}), status)


def is_htmx(request: Request) -> bool:
    """Whether the request wants a part of a page that is open."""
    return request.headers.get("hx-request") == "true"


def security_headers(state: AppState) -> dict[str, str]:
    """Scripts and styles from our own files only, images from here and the image store only, no frame."""
    store = urlsplit(state.settings.s3_public_url or state.settings.s3_endpoint_url or "https://*.amazonaws.com")
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
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


def _common(request: Request) -> dict[str, Any]:
    """The values of every template. `ui`: the macros of macros.html; `error_text(code)`: what an error code means."""
    root, language = request.scope["root_path"], language_of(request)
    common = {"root": root, "language": language, "languages": LANGUAGES}
    return {
        **common,
        "ui": _template("macros.html", language).make_module(common),
        "error_text": _template("error_texts.html", language).module.error_text,
    }


def _query(request: Request) -> str:
    return f"?{request.url.query}" if request.url.query else ""


def _template(name: str, language: str) -> Any:
    return _environment(language).get_template(name)


@cache
def _environment(language: str) -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # late: the API starts faster without

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(translations(language), newstyle=True)  # type: ignore[attr-defined]
    environment.filters["translate"] = lambda text: text and translations(language).gettext(text)
    environment.filters |= {"iso": iso, "number": number, "size": size, "duration": duration}
    environment.globals |= {"static": static, "sentence_texts": sentence.texts}
    return environment


@cache
def static(name: str) -> str:
    """The URL of a static file, with its digest as the query: a browser may cache it forever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"static/{name}?{digest}"


# Values as text, the same in both languages.


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def number(value: float) -> str:
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.1f}"


def size(value: int) -> str:
    """A number of bytes, as 1.2 MB."""
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
