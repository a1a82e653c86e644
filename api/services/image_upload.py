"""Pictures from outside: looked at before they are decoded, then written anew as a plain PNG, 8 bits of RGB.

What a file is its content says, never its name. Pixels are counted in the header, and so many are allowed as the bytes
make likely: what a bomb may cost is what its sender paid for. Of the metadata the orientation and the colour profile
are carried out and the rest is dropped; what is transparent becomes white. Knows nothing of requests or storage.
"""

import warnings
from contextlib import suppress
from io import BytesIO
from typing import BinaryIO, Protocol

from PIL import Image, ImageCms, UnidentifiedImageError

from common.errors import PictureRefused

FORMATS = ("PNG", "JPEG", "WEBP")
KNOWN = "PNG, JPEG and WebP"
FREE_PIXELS = 2**21  # for any file; libwebp takes 16 bytes for each of them
PIXELS_PER_BYTE = 64  # beyond those: a photograph has 2 to 20
STRIP = 256  # lines that are converted at once
EXIF_ORIENTATION = 0x0112
WHITE = (255, 255, 255)

warnings.simplefilter("error", Image.DecompressionBombWarning)


class Sink(Protocol):
    def write(self, block: bytes, /) -> int: ...


def normalise(file: BinaryIO, size: int, most_pixels: int, to: Sink) -> tuple[int, int]:
    """Write the picture in this file of so many bytes anew; its width and height. Raises PictureRefused."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            _look_over(picture, size, most_pixels)
            if picture.format == "PNG":
                picture.verify()  # the checksums, which decoding passes over; what was verified must be opened again
        with Image.open(file, formats=FORMATS) as picture:
            plain = _plain(picture)
        plain.save(to, "PNG", compress_level=1)  # type: ignore[arg-type]  # it only writes
    except PictureRefused:
        raise
    except UnidentifiedImageError:
        raise PictureRefused(f"The file is no picture that is known here; {KNOWN} are.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(most_pixels) from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, OverflowError):  # Pillow's words for all of them
        raise PictureRefused("The picture is damaged or cut short.") from None
    return plain.size


def _look_over(picture: Image.Image, size: int, most_pixels: int) -> None:
    """Nothing is decoded yet."""
    pixels = picture.width * picture.height
    if pixels > most_pixels:
        raise _too_large(most_pixels)
    if pixels > max(FREE_PIXELS, PIXELS_PER_BYTE * size):
        raise PictureRefused(
            f"The picture says that it has {picture.width}×{picture.height} pixels, in {size:,} bytes:"
            f" send it with at most {FREE_PIXELS:,} pixels."
        )
    if picture.format in ("PNG", "WEBP") and getattr(picture, "n_frames", 1) > 1:
        raise PictureRefused("The picture is animated; send one frame of it.")


def _too_large(most_pixels: int) -> PictureRefused:
    return PictureRefused(f"The picture has more than {most_pixels:,} pixels; scale it down.")


def _plain(picture: Image.Image) -> Image.Image:
    """Decoded, upright, and in RGB."""
    orientation, profile = _orientation(picture), picture.info.get("icc_profile")
    picture.load()
    plain = _in_srgb(picture, profile) if profile else None
    plain = plain or _flat(picture)
    if orientation:
        plain = plain.transpose(orientation)
    plain.info.clear()
    return plain


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    with suppress(Exception):  # nobody's EXIF is worth a refusal
        return ORIENTATIONS.get(picture.getexif().get(EXIF_ORIENTATION, 1))
    return None


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """In the colours that its profile means. None where there is nothing to carry out, or it makes no sense."""
    if picture.mode not in ("RGB", "CMYK"):
        return None
    with suppress(ImageCms.PyCMSError, OSError, ValueError):
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        return ImageCms.profileToProfile(picture, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return None


def _flat(picture: Image.Image) -> Image.Image:
    """In RGB, on white. Strip by strip, so that no second copy in yet another mode lies beside it."""
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    plain = Image.new("RGB", picture.size, WHITE)
    for top in range(0, picture.height, STRIP):
        strip = picture.crop((0, top, picture.width, min(top + STRIP, picture.height)))
        if picture.mode.startswith("I"):  # 16 bits of grey
            strip = strip.convert("I").point(lambda level: level / 257).convert("L")
        elif picture.has_transparency_data:
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
