"""Checks of a page in the browser. Each returns a list of problems.

    overflow             what is wider than the window or its box
    axe_violations       violations of WCAG 2 A and AA that axe finds
    untranslated         words of the other language, except names
    injected_elements    elements and scripts that user input has created
    broken_images        images that do not load or are distorted

Knows no view.
"""

import re
from collections.abc import Iterable
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
HANZI = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]+")
WORDS = re.compile(r"[A-Za-z][A-Za-z_'’-]+")

CODES = re.compile(r"[\w.:/-]*(\d|\w[./:]\w)[\w.:/-]*", re.ASCII)  # ids, sizes, versions, files, scopes

# Words on pages of both languages: names, and what people type.
WORDS_OF_BOTH = """
    画坊 Huafang huafang huaf_ HUAFANG_KEY admin-key viewer admin API CLI CPU CSV GPU HTTP ID JSON SHA SQL TXT URL UTC
    JPEG PNG WebP jpeg png webp Parquet WebDataset LoRA parquet webdataset imagefolder jsonl Postgres Redis curl
    kB MB GB TB ms min
"""
NAMES = frozenset(WORDS_OF_BOTH.split())


def overflow(page: Page) -> list[str]:
    return list(page.evaluate(OVERFLOW))


def axe_violations(page: Page) -> list[str]:
    """The debugger injects axe: the page's Content-Security-Policy stays as it is."""
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("rules => axe.run({runOnly: rules, resultTypes: ['violations']})", RULES)
    return [_sentence(violation, node) for violation in found["violations"] for node in violation["nodes"]]


def _sentence(violation: dict[str, Any], node: dict[str, Any]) -> str:
    reasons = [one["message"] for kind in ("any", "all", "none") for one in node[kind]]
    return f"{violation['id']}: {'; '.join(reasons)} — {node['html'][:200]}"


def untranslated(page: Page, known: Iterable[str]) -> list[str]:
    """`known`: texts that are the same in both languages. Elements with a `lang` of their own are skipped."""
    language = page.locator("html").get_attribute("lang")
    names = sorted({name for name in known if name} - NAMES, key=len, reverse=True)  # those may be parts of words
    found = []
    for text in page.evaluate(TEXTS):
        rest = _without(text, names)
        found_words = HANZI.findall(rest) if language == "en" else WORDS.findall(CODES.sub(" ", rest))
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


def injected_elements(page: Page) -> list[str]:
    ran = page.evaluate("window.__xss")
    elements = page.evaluate("[...document.querySelectorAll('[data-xss]')].map(e => e.outerHTML.slice(0, 200))")
    return ([f"script ran: {ran}"] if ran else []) + [f"element: {one}" for one in elements]


def broken_images(page: Page) -> list[str]:
    return list(page.evaluate(BROKEN_IMAGES))


# The page is wider than the window, or an element is wider than its box and no ancestor scrolls.
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
    const overflows = style.display !== "inline" && style.overflowX === "visible" && e.scrollWidth > e.clientWidth + 1;
    if (overflows) found.push(`needs ${e.scrollWidth} px and has ${e.clientWidth}: ${name(e)}`);
  }
  return [...new Set(found)];
}"""

# Every text for people, screen readers included, that is in the language of the page.
TEXTS = """() => {
  const language = document.documentElement.lang.slice(0, 2);
  const isForeign = e => {
    const tagged = e.closest("[lang]");
    return tagged && tagged.lang.slice(0, 2) !== language;
  };
  const isSkipped = e => e.closest("code, pre, kbd, samp, script, style, noscript, template, [translate=no], [hidden]");
  const isShown = e => e.checkVisibility({visibilityProperty: true}) || e.closest("title, option");
  const found = [document.title];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const e = node.parentElement;
    if (node.data.trim() && !isSkipped(e) && !isForeign(e) && isShown(e)) found.push(node.data.trim());
  }
  for (const e of document.body.querySelectorAll("*")) {
    if (isSkipped(e) || isForeign(e)) continue;
    for (const name of ["alt", "aria-label", "aria-description", "placeholder", "title", "hx-confirm"])
      if (e.getAttribute(name)) found.push(e.getAttribute(name));
  }
  return [...new Set(found)];
}"""

# Loads lazy images too.
BROKEN_IMAGES = """async () => {
  const found = [];
  for (const image of document.images) {
    image.loading = "eager";
    if (!image.src) continue;
    await image.decode().catch(() => found.push(`does not load: ${image.src}`));
    const {width, height} = image.getBoundingClientRect(), {naturalWidth, naturalHeight} = image;
    const isFilled = getComputedStyle(image).objectFit === "fill" && width && naturalWidth;
    if (isFilled && Math.abs(width * naturalHeight / (height * naturalWidth) - 1) > 0.03)
      found.push(`is ${naturalWidth} × ${naturalHeight} and shown as ${width} × ${height}: ${image.src}`);
  }
  return found;
}"""
