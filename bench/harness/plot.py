"""Bars with their range, as SVG: one panel a measure, one bar a side. Readable on light and dark pages."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, LEFT, RIGHT = 760, 290, 90  # the names stand left of the bars, the figures right of them
BAR, GAP, HEAD = 16, 8, 30
INK, FAINT, FILL, SPREAD = "#6b7280", "#9ca3af55", "#3b82f6", "#1d4ed8"


def plot(figures: Sequence[Mapping[str, Any]]) -> str:
    """The figures of one bench: side, measure, median, low, high."""
    parts, top = [], 0
    for measure in dict.fromkeys(figure["measure"] for figure in figures):
        panel = [figure for figure in figures if figure["measure"] == measure]
        parts.append(_panel(measure, panel, top))
        top += HEAD + len(panel) * (BAR + GAP) + GAP
    style = f"text{{font:12px system-ui,sans-serif;fill:{INK}}} .m{{font-weight:600}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])


def _panel(measure: str, figures: Sequence[Mapping[str, Any]], top: int) -> str:
    scale = (WIDTH - LEFT - RIGHT) / (max(figure["high"] for figure in figures) or 1)
    lines = [_text(LEFT, top + 18, measure, "start", "m")]
    for row, figure in enumerate(figures):
        y = top + HEAD + row * (BAR + GAP)
        low, middle, high = (max(figure[name], 0) * scale for name in ("low", "median", "high"))
        centre = y + BAR / 2
        lines += [
            _text(LEFT - 8, y + 12, figure["side"], "end"),
            _rectangle(LEFT, y, WIDTH - LEFT - RIGHT, BAR, FAINT),
            _rectangle(LEFT, y, middle, BAR, FILL),
            _rectangle(LEFT + low, centre - 1, max(high - low, 1), 2, SPREAD),
            _text(WIDTH - RIGHT + 8, y + 12, f"{figure['median']:.4g}", "start"),
        ]
    return "\n".join(lines)


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def _rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" rx="2" fill="{fill}"/>'
