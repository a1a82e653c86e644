"""Finding a font of this machine that has hanzi. None may be there, and none is shipped: the smallest has megabytes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

SAMPLE = "画"
# Where there is no fontconfig to ask: macOS, Windows, and a Linux without it.
PLACES = (
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


def hanzi_font(size: int) -> ImageFont.FreeTypeFont | None:
    """A font of that many pixels that draws hanzi; None if this machine has none."""
    for file, face in candidates():
        try:
            font = ImageFont.truetype(file, size, index=face)
        except OSError:
            continue
        if has_hanzi(font):
            return font
    return None


def candidates() -> Iterator[tuple[str, int]]:
    """Files, and which face of theirs."""
    yield from told_by_fontconfig()
    yield from ((file, 0) for file in PLACES if Path(file).is_file())


def told_by_fontconfig() -> Iterator[tuple[str, int]]:
    """Its best font for Chinese first; it names one even when it has none."""
    if command := shutil.which("fc-match"):
        asked = [command, "--sort", "sans:lang=zh-cn", "--format=%{file}\t%{index}\n"]
        try:
            said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
        except (OSError, subprocess.SubprocessError):
            return
        for line in said.splitlines()[:10]:
            file, _, face = line.partition("\t")
            yield file, int(face) if face.isdigit() and int(face) < 0x10000 else 0  # above: a variable font's instance


def has_hanzi(font: ImageFont.FreeTypeFont) -> bool:
    """Whether it draws a hanzi unlike what it draws for a character that no font has."""
    return bytes(font.getmask(SAMPLE)) != bytes(font.getmask("\U0010ffff"))
