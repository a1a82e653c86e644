"""What is wrong with a page as it stands in the browser: each check gives a list of sentences, empty where all is well.

    overflow      what does not fit the width of the window
    barriers      what axe finds of WCAG 2 A and AA
    strangers     words of the other language, but for what people and programs have named
    intruders     elements that came of somebody's text
    blanks        pictures that do not show, or not in their proportions

Knows no screen, and no framework.
"""

import re
from collections.abc import Iterable
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
HANZI = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
WORDS = re.compile(r"[A-Za-z][A-Za-z_'’-]+")

MARKS = re.compile(r"[\w.:/-]*(\d|\w[./:]\w)[\w.:/-]*", re.ASCII)  # ids, sizes, versions, files, scopes

# What pages of either language have: names, and what one types.
WORDS_OF_BOTH = """
    画坊 Huafang huafang huaf_ HUAFANG_KEY admin-key viewer admin API CLI CPU CSV GPU HTTP ID JSON SHA SQL TXT URL UTC
    JPEG PNG WebP jpeg png webp Parquet WebDataset LoRA parquet webdataset imagefolder jsonl Postgres Redis curl
    kB MB GB TB ms min
"""
NAMES = frozenset(WORDS_OF_BOTH.split())


def overflow(page: Page) -> list[str]:
    return list(page.evaluate(OVERFLOW))


def barriers(page: Page) -> list[str]:
    """Axe is put in by the debugger, past the page's Content-Security-Policy, which stays as it is."""
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("rules => axe.run({runOnly: rules, resultTypes: ['violations']})", RULES)
    return [_sentence(violation, node) for violation in found["violations"] for node in violation["nodes"]]


def _sentence(violation: dict[str, Any], node: dict[str, Any]) -> str:
    reasons = [one["message"] for kind in ("any", "all", "none") for one in node[kind]]
    return f"{violation['id']}: {'; '.join(reasons)} — {node['html'][:200]}"


def strangers(page: Page, known: Iterable[str]) -> list[str]:
    """`known`: texts that are the same in both languages. Elements that say that they are in another language are."""
    language = page.locator("html").get_attribute("lang")
    names = sorted(filter(None, known), key=len, reverse=True)
    found = []
    for text in page.evaluate(TEXTS):
        rest = _without(text, names)
        found_words = HANZI.findall(rest) if language == "en" else WORDS.findall(MARKS.sub(" ", rest))
        if words := [word for word in found_words if word not in NAMES]:
            found.append(f"not {language}: {' '.join(words)} — {text[:120]}")
    return found


def _without(text: str, names: Iterable[str]) -> str:
    shortened = text.strip().removesuffix("…")
    for name in names:
        if len(shortened) > 3 and shortened in name:
            return ""
        text = re.sub(rf"(?a)(?<![\w/]){re.escape(name)}(?!\w|[./]\w)", " ", text)
    return text


def intruders(page: Page) -> list[str]:
    ran = page.evaluate("window.__xss")
    elements = page.evaluate("[...document.querySelectorAll('[data-xss]')].map(e => e.outerHTML.slice(0, 200))")
    return ([f"ran: {ran}"] if ran else []) + [f"became an element: {one}" for one in elements]


def blanks(page: Page) -> list[str]:
    return list(page.evaluate(BLANKS))


# What is wider than it should be: the page itself, or an element that spills over its box and scrolls nowhere.
OVERFLOW = """() => {
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const isInside = e => e.parentElement && (scrolls(e.parentElement) || isInside(e.parentElement));
  const name = e => `<${e.localName} class="${e.getAttribute("class") ?? ""}"> ${e.textContent.trim().slice(0, 60)}`;
  const found = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push(`the page is ${root.scrollWidth} px wide in ${root.clientWidth}`);
  for (const e of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!box.width || !box.height || style.visibility === "hidden" || isInside(e) || e.closest("svg")) continue;
    if (box.right > root.clientWidth + 1) found.push(`ends at ${Math.round(box.right)} px: ${name(e)}`);
    const spills = style.display !== "inline" && style.overflowX === "visible" && e.scrollWidth > e.clientWidth + 1;
    if (spills) found.push(`needs ${e.scrollWidth} px and has ${e.clientWidth}: ${name(e)}`);
  }
  return [...new Set(found)];
}"""

# Every text that a person reads or hears, where it is in the language of the page.
TEXTS = """() => {
  const language = document.documentElement.lang.slice(0, 2);
  const isForeign = e => {
    const said = e.closest("[lang]");
    return said && said.lang.slice(0, 2) !== language;
  };
  const isApart = e => e.closest("code, pre, kbd, samp, script, style, noscript, template, [translate=no], [hidden]");
  const isShown = e => e.checkVisibility({visibilityProperty: true}) || e.closest("title, option");
  const found = [document.title];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const e = node.parentElement;
    if (node.data.trim() && !isApart(e) && !isForeign(e) && isShown(e)) found.push(node.data.trim());
  }
  for (const e of document.body.querySelectorAll("*")) {
    if (isApart(e) || isForeign(e)) continue;
    for (const name of ["alt", "aria-label", "aria-description", "placeholder", "title", "hx-confirm"])
      if (e.getAttribute(name)) found.push(e.getAttribute(name));
  }
  return [...new Set(found)];
}"""

# Loads those too that would wait until one scrolls to them.
BLANKS = """async () => {
  const found = [];
  for (const image of document.images) {
    image.loading = "eager";
    if (!image.src) continue;
    await image.decode().catch(() => found.push(`does not show: ${image.src}`));
    const {width, height} = image.getBoundingClientRect(), {naturalWidth, naturalHeight} = image;
    const isFilled = getComputedStyle(image).objectFit === "fill" && width && naturalWidth;
    if (isFilled && Math.abs(width * naturalHeight / (height * naturalWidth) - 1) > 0.03)
      found.push(`is ${naturalWidth} × ${naturalHeight} and shown as ${width} × ${height}: ${image.src}`);
  }
  return found;
}"""
