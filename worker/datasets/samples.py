"""The sheet of samples of a dataset: some of its images side by side. Equal images give equal bytes."""

import io
from collections.abc import Sequence
from contextlib import suppress

from PIL import Image, ImageOps

from common.labels.reader import labelled_xmp

SAMPLES, COLUMNS, TILE = 12, 4, 192  # images, images a row, pixels


def grid(images: Sequence[bytes]) -> bytes:
    """A JPEG with these image files side by side, and their first label. The place of a damaged one stays empty."""
    columns = min(COLUMNS, len(images))
    sheet = Image.new("RGB", (columns * TILE, -(-len(images) // columns) * TILE), "white")
    for number, data in enumerate(images):
        with suppress(OSError), Image.open(io.BytesIO(data)) as opened:
            tile = ImageOps.contain(opened.convert("RGB"), (TILE, TILE))
            sheet.paste(tile, (number % columns * TILE, number // columns * TILE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=85, xmp=next(filter(None, map(labelled_xmp, images)), None))
    return file.getvalue()
