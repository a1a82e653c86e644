"""Uploaded images: validated before they are decoded, then encoded as a plain PNG, 8 bits of RGB, on white.

The content decides the format, never the file name. The header's pixel count is limited by the file's size, so that a
decompression bomb costs no more than its upload; so is the number of its parts. Orientation and colour profile are
applied; all other metadata is dropped. Knows nothing of requests or storage.
"""

import warnings
from contextlib import suppress
from io import BytesIO
from typing import BinaryIO, Protocol

from PIL import Image, ImageCms, UnidentifiedImageError

from api import sentence
from api.services.image_parts import check_parts
from common.errors import PictureRefused

FORMATS = ("PNG", "JPEG", "WEBP")
FREE_PIXELS = 2**21  # allowed for a file of any size; libwebp uses 16 bytes a pixel
PIXELS_PER_BYTE = 64  # allowed beyond them; a photograph has 2 to 20
STRIP = 256  # rows that are converted at once
EXIF_ORIENTATION = 0x0112
WHITE = (255, 255, 255)

warnings.simplefilter("error", Image.DecompressionBombWarning)


class Sink(Protocol):
    def write(self, block: bytes, /) -> int: ...


def normalise(file: BinaryIO, size: int, most_pixels: int, to: Sink) -> tuple[int, int]:
    """Write the image in `file`, of `size` bytes, to `to` as PNG; its width and height. Raises PictureRefused."""
    try:
        check_parts(file, size)
        with Image.open(file, formats=FORMATS) as image:
            _validate(image, size, most_pixels)
            if image.format == "PNG":
                image.verify()  # the checksums, which decoding ignores; a verified image must be opened again
        with Image.open(file, formats=FORMATS) as image:
            plain = _decode(image)
        plain.save(to, "PNG", compress_level=1)  # type: ignore[arg-type]  # it only writes
    except PictureRefused:
        raise
    except UnidentifiedImageError:
        raise PictureRefused(sentence("image_format_unknown")) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(most_pixels) from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
        OverflowError,
    ):  # what Pillow raises for damaged files
        raise PictureRefused(sentence("image_damaged")) from None
    return plain.size


def _validate(image: Image.Image, size: int, most_pixels: int) -> None:
    """Checks the header only; nothing is decoded yet."""
    pixels = image.width * image.height
    if pixels > most_pixels:
        raise _too_large(most_pixels)
    if pixels > max(FREE_PIXELS, PIXELS_PER_BYTE * size):
        raise PictureRefused(
            sentence("image_too_sparse", width=image.width, height=image.height, bytes=size, most=FREE_PIXELS)
        )
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise PictureRefused(sentence("image_animated"))


def _too_large(most_pixels: int) -> PictureRefused:
    return PictureRefused(sentence("image_too_large", most=most_pixels))


def _decode(image: Image.Image) -> Image.Image:
    """In RGB, upright, without metadata."""
    orientation, profile = _orientation(image), image.info.get("icc_profile")
    image.load()
    plain = _to_srgb(image, profile) if profile else None
    plain = plain or _flatten(image)
    if orientation:
        plain = plain.transpose(orientation)
    plain.info.clear()
    return plain


def _orientation(image: Image.Image) -> Image.Transpose | None:
    with suppress(Exception):  # a damaged EXIF block is ignored
        return ORIENTATIONS.get(image.getexif().get(EXIF_ORIENTATION, 1))
    return None


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """None for a mode without a profile, and for a damaged profile."""
    if image.mode not in ("RGB", "CMYK"):
        return None
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return None


def _flatten(image: Image.Image) -> Image.Image:
    """In RGB, on white. Strip by strip, so that no copy of the whole image in another mode takes memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    plain = Image.new("RGB", image.size, WHITE)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        if image.mode.startswith("I"):  # 16 bits of grey
            strip = strip.convert("I").point(lambda level: level / 257).convert("L")
        elif image.has_transparency_data:
            strip = strip.convert("RGBA")
            plain.paste(strip, (0, top), strip)
            continue
        plain.paste(strip.convert("RGB"), (0, top))
    return plain


ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
