"""A comparison as one image: its tables one below the other, with titles beside and above the pictures.

Text needs a font of this machine that has hanzi: none is shipped, since the smallest has megabytes. Without one, a
title with hanzi becomes a number, and the legend holds the titles.
"""

import io
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cli.sheets.comparison import Cell, Comparison, Table
from common.labels.reader import labelled_xmp

MAX_SIDE, MIN_SIDE = 256, 128  # pixels of a square cell
GAP, MARGIN = 10, 24
TITLE_WIDTH = 190  # of the titles of rows
TEXT, SUBTITLE = 18, 14  # font sizes in pixels
LINE_HEIGHT = 1.35
MAX_LINES = 8  # of a title, the last one ending in …
PAPER, INK, FAINT, EMPTY = "#ffffff", "#1a1a1a", "#6b6b6b", "#f1f0ee"
NOT_FIRST_IN_LINE = "，。、；：！？）》」』”’…"

HANZI = "画"
# Where there is no fontconfig: macOS, Windows, and some Linux.
FONT_FILES = (
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/STHeiti Light.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/simhei.ttf",
    "C:/Windows/Fonts/simsun.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-sans-cjk-fonts/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass
class TextRenderer:
    """Draws text in two sizes. Without hanzi glyphs it draws a number in place of a text, and adds it to `legend`."""

    fonts: dict[int, Font]
    has_hanzi: bool
    legend: list[str] = field(default_factory=list)

    def wrap(self, text: str, size: int, width: float) -> list[str]:
        """A title as lines of at most `width` pixels."""
        lines = [""]
        for piece in split_breakable(self.drawable(" ".join(text.split()))):
            if lines[-1] and self.fonts[size].getlength(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
        if len(lines) > MAX_LINES:
            lines[MAX_LINES - 1 :] = [lines[MAX_LINES - 1].rstrip()[:-1] + "…"]
        return [line for line in lines if line]

    def drawable(self, text: str) -> str:
        if self.has_hanzi or text.isascii():
            return text
        if text not in self.legend:
            self.legend.append(text)
        return f"({self.legend.index(text) + 1})"

    def draw(self, image: Image.Image, at: tuple[float, float], lines: Sequence[str], size: int, colour: str) -> None:
        canvas, (x, y) = ImageDraw.Draw(image), at
        for line in lines:
            canvas.text((x, y), line, fill=colour, font=self.fonts[size])
            y += height_of(1, size)


def render_sheet(comparison: Comparison) -> tuple[Image.Image, list[str]]:
    """The sheet, and the titles that its numbers stand for, from 1 on."""
    text, side = make_text_renderer(), cell_side(comparison)
    tables = [draw_table(table, side, text) for table in comparison.tables]
    width = max(table.width for table in tables)
    about = text.wrap(", ".join(f"{name} {value}" for name, value in comparison.about.items()), SUBTITLE, width)
    height = sum(table.height + 3 * GAP for table in tables) + height_of(len(about), SUBTITLE)
    sheet, y = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER), MARGIN
    for table in tables:
        sheet.paste(table, (MARGIN, y))
        y += table.height + 3 * GAP
    text.draw(sheet, (MARGIN, y), about, SUBTITLE, FAINT)
    return sheet, text.legend


def png_of(sheet: Image.Image, comparison: Comparison) -> bytes:
    """The sheet with the first AI label of its pictures."""
    labels = (labelled_xmp(cell.picture.read_bytes()) for cell in comparison.cells if cell.picture)
    texts = PngInfo()
    if label := next(filter(None, labels), None):
        texts.add_itxt("XML:com.adobe.xmp", label.decode())
    sheet.save(file := io.BytesIO(), "PNG", pnginfo=texts)
    return file.getvalue()


def cell_side(comparison: Comparison) -> int:
    """The side of a cell in pixels: that of the largest picture, within limits."""
    largest = MIN_SIDE
    for cell in comparison.cells:
        if cell.picture:
            with Image.open(cell.picture) as picture:
                largest = max(largest, *picture.size)
    return min(largest, MAX_SIDE)


def draw_table(table: Table, side: int, text: TextRenderer) -> Image.Image:
    width = TITLE_WIDTH + len(table.columns) * (side + GAP) - GAP
    caption, subtitle = text.wrap(table.title, TEXT, width), text.wrap(table.subtitle, SUBTITLE, width)
    columns = [text.wrap(title, TEXT, side) for title in table.columns]
    rows = [
        (text.wrap(row.title, TEXT, TITLE_WIDTH - GAP), text.wrap(row.subtitle, SUBTITLE, TITLE_WIDTH - GAP))
        for row in table.rows
    ]
    head = height_of(len(caption), TEXT) + height_of(len(subtitle), SUBTITLE)
    top = head + (GAP if head else 0) + height_of(max(map(len, columns)), TEXT) + GAP
    heights = [max(side, height_of(len(title), TEXT) + height_of(len(below), SUBTITLE)) for title, below in rows]

    image, y = Image.new("RGB", (width, top + sum(heights) + GAP * (len(heights) - 1)), PAPER), top
    text.draw(image, (0, 0), caption, TEXT, INK)
    text.draw(image, (0, height_of(len(caption), TEXT)), subtitle, SUBTITLE, FAINT)
    lefts = [TITLE_WIDTH + at * (side + GAP) for at in range(len(table.columns))]
    for x, title in zip(lefts, columns, strict=True):
        text.draw(image, (x, top - GAP - height_of(len(title), TEXT)), title, TEXT, INK)
    for row, (title, below), height in zip(table.rows, rows, heights, strict=True):
        text.draw(image, (0, y), title, TEXT, INK)
        text.draw(image, (0, y + height_of(len(title), TEXT)), below, SUBTITLE, FAINT)
        for x, cell in zip(lefts, row.cells, strict=True):
            image.paste(draw_cell(cell, side, text), (x, y))
        y += height + GAP
    return image


def draw_cell(cell: Cell, side: int, text: TextRenderer) -> Image.Image:
    """The picture, centred; or the reason why there is none."""
    if cell.picture is None:
        image = Image.new("RGB", (side, side), EMPTY)
        text.draw(image, (GAP, GAP), text.wrap(cell.missing, SUBTITLE, side - 2 * GAP), SUBTITLE, FAINT)
        return image
    image = Image.new("RGB", (side, side), PAPER)
    with Image.open(cell.picture) as file:
        picture = file.convert("RGB")
    picture.thumbnail((side, side))
    image.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return image


# Text


def split_breakable(text: str) -> list[str]:
    """Pieces between which a line may break: after a space, around hanzi, and within a word of 16 characters."""
    pieces = [""]
    for before, character in zip(" " + text, text, strict=False):
        may_break = before == " " or not (before.isascii() and character.isascii()) or len(pieces[-1]) > 16
        if may_break and character not in NOT_FIRST_IN_LINE:
            pieces.append("")
        pieces[-1] += character
    return pieces


def height_of(lines: int, size: int) -> int:
    return round(lines * size * LINE_HEIGHT)


def make_text_renderer() -> TextRenderer:
    found = {size: find_hanzi_font(size) for size in (TEXT, SUBTITLE)}
    fonts: dict[int, Font] = {size: font or ImageFont.load_default(size) for size, font in found.items()}
    return TextRenderer(fonts, all(found.values()))


def find_hanzi_font(size: int) -> ImageFont.FreeTypeFont | None:
    """A font of that many pixels with hanzi; None if this machine has none."""
    for file, face in candidate_fonts():
        try:
            font = ImageFont.truetype(file, size, index=face)
        except OSError:
            continue
        if has_hanzi(font):
            return font
    return None


def candidate_fonts() -> Iterator[tuple[str, int]]:
    """Files of fonts, each with the index of its face."""
    yield from fontconfig_fonts()
    yield from ((file, 0) for file in FONT_FILES if Path(file).is_file())


def fontconfig_fonts() -> Iterator[tuple[str, int]]:
    """Fontconfig's best fonts for Chinese first; without one for Chinese it lists others."""
    if command := shutil.which("fc-match"):
        arguments = [command, "--sort", "sans:lang=zh-cn", "--format=%{file}\t%{index}\n"]
        try:
            listing = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.SubprocessError):
            return
        for line in listing.splitlines()[:10]:
            file, _, face = line.partition("\t")
            yield file, int(face) if face.isdigit() and int(face) < 0x10000 else 0  # above: a variable font's instance


def has_hanzi(font: ImageFont.FreeTypeFont) -> bool:
    """Whether its glyph of a hanzi differs from its glyph of a character that no font has."""
    return bytes(font.getmask(HANZI)) != bytes(font.getmask("\U0010ffff"))
