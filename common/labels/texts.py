"""The texts that a worker has written into the file of a picture: recipe, key, weights and class. Read only."""

import json
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

IMAGE_DESCRIPTION = 0x010E  # the EXIF tag


def embedded_texts(data: bytes) -> dict[str, str]:
    """The texts by keyword, as `worker.render.encode` writes them. Empty for other files; decodes no pixel."""
    from PIL import Image  # loaded late: most of those who import this room need no pictures

    try:
        with Image.open(BytesIO(data)) as image:
            if image.format == "PNG":
                return {str(key): str(text) for key, text in image.info.items() if isinstance(text, str)}
            if image.format == "JPEG":  # a long text is in several comments
                text = b"".join(comment for name, comment in image.applist if name == "COM")  # type: ignore[attr-defined]
            else:
                text = image.getexif().get(IMAGE_DESCRIPTION, "")
        return {str(key): str(value) for key, value in read_object(text).items()}
    except (OSError, SyntaxError, ValueError, struct.error):  # what Pillow raises for a damaged file
        return {}


def read_object(text: str | bytes) -> Mapping[str, Any]:
    """An object of JSON; empty for any other text."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
