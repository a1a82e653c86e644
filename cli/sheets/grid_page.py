"""A comparison as one HTML file with its pictures in it. Its policy forbids it to load or to run anything.

It is built as a tree, so a prompt is always text. A click on a picture enlarges it, by links to fragments of the page.
"""

import base64
import io
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from PIL import Image

from cli.sheets.comparison import Cell, Comparison, Table

MAX_ORIGINAL_BYTES = 50_000  # a larger file is embedded as WebP
QUALITY = 90
MEDIA_TYPES = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg"}

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --faint: color-mix(in srgb, CanvasText 62%, Canvas); }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; font: 1rem/1.45 system-ui, "PingFang SC", "Noto Sans CJK SC", "Noto Sans SC",
  "Microsoft YaHei", "WenQuanYi Zen Hei", sans-serif; color: CanvasText; background: Canvas; }
h1 { font-size: 1.35rem; margin: 0 0 1rem; }
dl { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1.5rem 0 0; color: var(--faint); font-size: .85rem; }
dl div { display: flex; gap: .4rem; } dd { margin: 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: separate; border-spacing: .5rem; }
caption { text-align: start; font-size: 1.1rem; padding: .25rem .5rem; overflow-wrap: anywhere; }
th { font-weight: 500; text-align: start; vertical-align: top; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 400; width: 12rem; min-width: 8rem; overflow-wrap: anywhere; }
small { display: block; color: var(--faint); font-weight: 400; font-size: .8rem; }
td { padding: 0; vertical-align: top; }
figure { margin: 0; width: 16rem; }
figure a { display: block; } img { display: block; width: 100%; height: auto; }
a:focus-visible, .table:focus-visible { outline: 3px solid Highlight; outline-offset: 2px; }
figcaption, .back, .column { display: none; }
.none { width: 16rem; aspect-ratio: 1; padding: .75rem; color: var(--faint); overflow: auto;
  background: color-mix(in srgb, CanvasText 7%, Canvas); }
figure:target { position: fixed; inset: 0; z-index: 1; width: auto; display: grid; place-content: center; gap: .75rem;
  padding: 1rem; background: Canvas; overflow: auto; }
figure:target img { width: auto; max-width: 100%; min-width: min(90vw, 24rem); max-height: 80vh; object-fit: contain; }
figure:target figcaption { display: block; max-width: 60ch; overflow-wrap: anywhere; }
figure:target .back { display: inline-block; padding: .5rem 0; color: LinkText; }
@media (max-width: 40rem) {
  table, tbody, caption { display: block; } thead { display: none; }
  tr { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; margin-bottom: 1.25rem; }
  tbody th { grid-column: 1 / -1; width: auto; }
  figure, .none { width: 100%; } .column { display: block; font-size: .85rem; }
}
"""


def render_page(comparison: Comparison, title: str) -> bytes:
    """The HTML file."""
    html = Element("html", lang="en")
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    add(head, "title", title)
    add(head, "style", STYLE)
    add(body, "h1", title)
    numbers = count(1)
    for table in comparison.tables:
        add_table(body, table, numbers)
    add_about(body, comparison.about)
    return b"<!DOCTYPE html>\n" + ElementTree.tostring(html, encoding="utf-8", method="html")


def add(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    child = SubElement(parent, tag, attributes)
    child.text = text
    return child


def add_table(body: Element, table: Table, numbers: Iterator[int]) -> None:
    # tabindex: a region that scrolls sideways must be reachable by the keyboard.
    region = SubElement(
        body, "div", {"class": "table", "role": "region", "tabindex": "0", "aria-label": table.title or "pictures"}
    )
    shown = SubElement(region, "table")
    if table.title:
        add_titled(shown, "caption", table.title, table.subtitle)
    columns = SubElement(SubElement(shown, "thead"), "tr")
    SubElement(columns, "td")
    for title in table.columns:
        add(columns, "th", title, scope="col")
    rows = SubElement(shown, "tbody")
    for row in table.rows:
        line = SubElement(rows, "tr")
        add_titled(line, "th", row.title, row.subtitle, scope="row")
        for column, cell in zip(table.columns, row.cells, strict=True):
            place = SubElement(line, "td")
            add(place, "span", column, **{"class": "column"})
            add_cell(place, cell, next(numbers))


def add_titled(parent: Element, tag: str, title: str, subtitle: str, **attributes: str) -> None:
    child = SubElement(parent, tag, attributes)
    add(child, "span", title, lang="zh")
    if subtitle:
        add(child, "small", subtitle)


def add_cell(place: Element, cell: Cell, number: int) -> None:
    """A picture with a link that enlarges it; or the reason why there is none."""
    if cell.picture is None:
        add(place, "div", cell.missing, **{"class": "none"})
        return
    place.set("id", f"c{number}")
    figure = SubElement(place, "figure", id=f"p{number}")
    link = SubElement(figure, "a", href=f"#p{number}")
    link.append(img(cell.picture, cell.label))
    add(figure, "figcaption", cell.label, lang="zh")
    add(figure, "a", "Back to all pictures", **{"class": "back", "href": f"#c{number}"})


def img(file: Path, label: str) -> Element:
    data = file.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        media_type, (width, height) = MEDIA_TYPES.get(picture.format or ""), picture.size
        if media_type is None or len(data) > MAX_ORIGINAL_BYTES:
            small = io.BytesIO()
            picture.convert("RGB").save(small, "WEBP", quality=QUALITY)
            media_type, data = MEDIA_TYPES["WEBP"], small.getvalue()
    source = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return Element("img", src=source, alt=label, width=str(width), height=str(height))


def add_about(body: Element, about: Mapping[str, str]) -> None:
    names = SubElement(body, "dl")
    for name, value in about.items():
        pair = SubElement(names, "div")
        add(pair, "dt", name)
        add(pair, "dd", value)
