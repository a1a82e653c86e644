"""A comparison as one picture: its tables one below the other, titles beside and above what they name.

Text is drawn with a font of this machine that has hanzi. Without one, a title that cannot be drawn becomes a number,
and the legend says what the numbers stand for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from cli.sheets.comparison import Cell, Comparison, Table
from cli.sheets.fonts import hanzi_font

LARGEST, SMALLEST = 256, 128  # how wide and high a picture has its place
GAP, MARGIN = 10, 24
BESIDE = 190  # how wide the titles of rows are
TEXT, NOTE = 18, 14  # pixels
LEADING = 1.35
MOST_LINES = 8  # of a title, the last one ending in …
PAPER, INK, FAINT, NOTHING = "#ffffff", "#1a1a1a", "#6b6b6b", "#f1f0ee"
NEVER_FIRST = "，。、；：！？）》」』”’…"  # in a line

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class Pen:
    """Writes in two sizes. What it has no glyphs for it writes as numbers, and remembers."""

    fonts: dict[int, Font]
    has_hanzi: bool
    legend: list[str] = field(default_factory=list)

    def lines(self, text: str, size: int, width: float) -> list[str]:
        """A title, broken into lines that are not wider than this."""
        found = [""]
        for piece in pieces(self.writable(" ".join(text.split()))):
            if found[-1] and self.fonts[size].getlength(found[-1] + piece.rstrip()) > width:
                found.append("")
            found[-1] += piece
        if len(found) > MOST_LINES:
            found[MOST_LINES - 1 :] = [found[MOST_LINES - 1].rstrip()[:-1] + "…"]
        return [line for line in found if line]

    def writable(self, text: str) -> str:
        if self.has_hanzi or text.isascii():
            return text
        if text not in self.legend:
            self.legend.append(text)
        return f"({self.legend.index(text) + 1})"

    def write(self, on: Image.Image, at: tuple[float, float], lines: Sequence[str], size: int, colour: str) -> None:
        draw, (x, y) = ImageDraw.Draw(on), at
        for line in lines:
            draw.text((x, y), line, fill=colour, font=self.fonts[size])
            y += height_of(1, size)


def pieces(text: str) -> list[str]:
    """Where a line may break: after a space, around hanzi, and anywhere in a word that would fill a line."""
    found = [""]
    for before, character in zip(" " + text, text, strict=False):
        may_break = before == " " or not (before.isascii() and character.isascii()) or len(found[-1]) > 16
        if may_break and character not in NEVER_FIRST:
            found.append("")
        found[-1] += character
    return found


def height_of(lines: int, size: int) -> int:
    return round(lines * size * LEADING)


def draw_sheet(comparison: Comparison) -> tuple[Image.Image, list[str]]:
    """The sheet, and what the numbers in it stand for, from 1 on."""
    pen, side = pen_of_this_machine(), side_of(comparison)
    tables = [draw_table(table, side, pen) for table in comparison.tables]
    width = max(table.width for table in tables)
    about = pen.lines(", ".join(f"{name} {value}" for name, value in comparison.about.items()), NOTE, width)
    height = sum(table.height + 3 * GAP for table in tables) + height_of(len(about), NOTE)
    sheet, y = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER), MARGIN
    for table in tables:
        sheet.paste(table, (MARGIN, y))
        y += table.height + 3 * GAP
    pen.write(sheet, (MARGIN, y), about, NOTE, FAINT)
    return sheet, pen.legend


def pen_of_this_machine() -> Pen:
    found = {size: hanzi_font(size) for size in (TEXT, NOTE)}
    return Pen({size: font or ImageFont.load_default(size) for size, font in found.items()}, all(found.values()))


def side_of(comparison: Comparison) -> int:
    """How wide and high the place of a picture is: that of the largest, within limits."""
    largest = SMALLEST
    for cell in comparison.cells:
        if cell.picture:
            with Image.open(cell.picture) as picture:
                largest = max(largest, *picture.size)
    return min(largest, LARGEST)


def draw_table(table: Table, side: int, pen: Pen) -> Image.Image:
    width = BESIDE + len(table.columns) * (side + GAP) - GAP
    caption, note = pen.lines(table.title, TEXT, width), pen.lines(table.note, NOTE, width)
    above = [pen.lines(title, TEXT, side) for title in table.columns]
    beside = [
        (pen.lines(line.title, TEXT, BESIDE - GAP), pen.lines(line.note, NOTE, BESIDE - GAP)) for line in table.lines
    ]
    head = height_of(len(caption), TEXT) + height_of(len(note), NOTE)
    top = head + (GAP if head else 0) + height_of(max(map(len, above)), TEXT) + GAP
    heights = [max(side, height_of(len(title), TEXT) + height_of(len(note), NOTE)) for title, note in beside]

    drawn, y = Image.new("RGB", (width, top + sum(heights) + GAP * (len(heights) - 1)), PAPER), top
    pen.write(drawn, (0, 0), caption, TEXT, INK)
    pen.write(drawn, (0, height_of(len(caption), TEXT)), note, NOTE, FAINT)
    places = [BESIDE + at * (side + GAP) for at in range(len(table.columns))]
    for x, title in zip(places, above, strict=True):
        pen.write(drawn, (x, top - GAP - height_of(len(title), TEXT)), title, TEXT, INK)
    for line, (title, note), height in zip(table.lines, beside, heights, strict=True):
        pen.write(drawn, (0, y), title, TEXT, INK)
        pen.write(drawn, (0, y + height_of(len(title), TEXT)), note, NOTE, FAINT)
        for x, cell in zip(places, line.cells, strict=True):
            drawn.paste(draw_cell(cell, side, pen), (x, y))
        y += height + GAP
    return drawn


def draw_cell(cell: Cell, side: int, pen: Pen) -> Image.Image:
    """The picture in the middle of its place; or, in words, why there is none."""
    if cell.picture is None:
        place = Image.new("RGB", (side, side), NOTHING)
        pen.write(place, (GAP, GAP), pen.lines(cell.fate, NOTE, side - 2 * GAP), NOTE, FAINT)
        return place
    place = Image.new("RGB", (side, side), PAPER)
    with Image.open(cell.picture) as file:
        picture = file.convert("RGB")
    picture.thumbnail((side, side))
    place.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return place
