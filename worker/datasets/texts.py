"""Reads the texts that `worker.render.encode` wrote into an image, such as its recipe. Decodes no pixel."""

import json
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image

IMAGE_DESCRIPTION = 0x010E  # the EXIF tag


def embedded_texts(data: bytes) -> dict[str, str]:
    """The texts by keyword that `worker.render.encode` wrote into an image. Empty for other files."""
    try:
        with Image.open(BytesIO(data)) as image:
            if image.format == "PNG":
                return {str(key): str(text) for key, text in image.info.items() if isinstance(text, str)}
            if image.format == "JPEG":  # a long text is in several comments
                text = b"".join(comment for name, comment in image.applist if name == "COM")  # type: ignore[attr-defined]
            else:
                text = image.getexif().get(IMAGE_DESCRIPTION, "")
        return {str(key): str(value) for key, value in json_object(text).items()}
    except (OSError, SyntaxError, ValueError, struct.error):  # what Pillow raises for a damaged file
        return {}


def json_object(text: str | bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
