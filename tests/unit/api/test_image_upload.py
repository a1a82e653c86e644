"""What comes from outside as a picture becomes a plain PNG, whatever it was, or is refused before it costs anything."""

import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from api.services.image_upload import FREE_PIXELS, normalise
from common.errors import PictureRefused

MOST = 2**24
RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)
UPRIGHT, TURNED = 1, 6  # in EXIF

COST = """
import sys
from api.services import image_upload as pictures
from common.errors import PictureRefused
from PIL import Image
from io import BytesIO

def most():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

for kind in ("PNG", "JPEG", "WEBP"):  # what the libraries take once, whatever they decode
    small = BytesIO()
    Image.new("RGB", (8, 8)).save(small, kind)
    pictures.normalise(small, 1000, 2**24, BytesIO())
before = most()
data = sys.stdin.buffer.read()
try:
    pictures.normalise(BytesIO(data), len(data), 2**24, BytesIO())
except PictureRefused:
    pass
print(most() - before)
"""


def file_of(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def kept(data: bytes, most_pixels: int = MOST) -> Image.Image:
    file = BytesIO()
    size = normalise(BytesIO(data), len(data), most_pixels, file)
    picture = Image.open(file)
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", size)
    assert picture.info == {}
    return picture


def refusal(data: bytes, most_pixels: int = MOST) -> str:
    with pytest.raises(PictureRefused) as raised:
        normalise(BytesIO(data), len(data), most_pixels, BytesIO())
    assert raised.value.message.count(".") == 1
    return raised.value.message


def two(first: Any = RED, second: Any = GREEN, mode: str = "RGB") -> Image.Image:
    """32×16: one colour on the left, another on the right."""
    picture = Image.new(mode, (32, 16), first)
    picture.paste(second, (16, 0, 32, 16))
    return picture


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "where I live"
    return tags


def palette() -> Image.Image:
    return two().quantize(2)


def see_through() -> Image.Image:
    return two((*RED, 255), (0, 0, 0, 0), "RGBA")


def sixteen_bits() -> Image.Image:
    line = (65535).to_bytes(2, "little") * 16 + (32768).to_bytes(2, "little") * 16
    return Image.frombytes("I;16", (32, 16), line * 16)


def near(one: Any, other: Any) -> bool:
    return all(abs(a - b) <= 4 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (file_of(two()), RED, GREEN),
        (file_of(two(), "JPEG", quality=95, subsampling=0), RED, GREEN),
        (file_of(two(), "WEBP", lossless=True), RED, GREEN),
        (file_of(palette()), RED, GREEN),
        (file_of(see_through()), RED, WHITE),
        (file_of(see_through(), "WEBP", lossless=True), RED, WHITE),
        (file_of(see_through().quantize(3)), RED, WHITE),
        (file_of(palette(), transparency=palette().getpixel((20, 8))), RED, WHITE),
        (file_of(two(), transparency=GREEN), RED, WHITE),
        (file_of(two(40, 200, "L"), transparency=200), (40,) * 3, WHITE),
        (file_of(two((40, 255), (0, 0), "LA")), (40,) * 3, WHITE),
        (file_of(two(1, 0, "1")), WHITE, (0,) * 3),
        (file_of(sixteen_bits()), WHITE, (127,) * 3),
        (file_of(two().convert("CMYK"), "JPEG", quality=95), RED, GREEN),
        (file_of(two().convert("L"), "JPEG"), (76,) * 3, (150,) * 3),
    ],
    ids=range(15),
)
def test_an_image_of_any_mode_becomes_plain_rgb(data: bytes, left: Any, right: Any) -> None:
    picture = kept(data)
    assert near(picture.getpixel((4, 8)), left)
    assert near(picture.getpixel((28, 8)), right)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_becomes_upright_and_has_no_metadata(kind: str) -> None:
    turned = kept(file_of(two(), kind, exif=exif(TURNED)))
    assert turned.size == (16, 32)
    assert near(turned.getpixel((8, 4)), kept(file_of(two(), kind)).getpixel((4, 8)))
    assert kept(file_of(two(), kind, exif=exif(UPRIGHT))).size == (32, 16)


def test_the_colour_profile_is_applied() -> None:
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # of another number of colours
    for profile in (same, lab, b"no profile"):
        assert near(kept(file_of(two(), icc_profile=profile)).getpixel((4, 8)), RED)


def test_a_photograph_with_a_second_picture_in_it_is_the_first() -> None:
    file = BytesIO()
    two().save(file, "MPO", save_all=True, append_images=[two(GREEN, RED)], quality=95)
    assert near(kept(file.getvalue()).getpixel((4, 8)), RED)


def animated(kind: str) -> bytes:
    return file_of(two(), kind, save_all=True, append_images=[two(GREEN, RED)], duration=100)


def with_a_flipped_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


NOISE = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (animated("PNG"), "animated"),
        (animated("WEBP"), "animated"),
        (file_of(two(), "GIF"), "not a PNG, JPEG or WebP picture"),
        (file_of(two(), "TIFF"), "not a PNG, JPEG or WebP picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WebP picture"),
        (file_of(NOISE)[:8], "not a PNG, JPEG or WebP picture"),
        (file_of(NOISE)[:2000], "damaged or truncated"),
        (file_of(NOISE, "JPEG")[:600], "damaged or truncated"),
        (file_of(NOISE, "WEBP", lossless=True)[:2000], "damaged or truncated"),
        (with_a_flipped_bit(file_of(NOISE)), "damaged or truncated"),
    ],
    ids=range(10),
)
def test_a_file_that_is_no_complete_image_is_refused_in_one_sentence(data: bytes, reason: str) -> None:
    assert reason in refusal(data)


def flat(pixels: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (pixels // 1024, 1024))


def bomb(kind: str, mode: str = "RGB", pixels: int = FREE_PIXELS, **options: Any) -> Callable[[], bytes]:
    return lambda: file_of(flat(pixels, mode), kind, **options)


def text_bomb() -> bytes:
    """20 MB of text in 20 KB."""
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    for number in range(20):
        said.add_text(f"note {number}", "x" * 2**20, zip=True)
    return file_of(two(), pnginfo=said)


@pytest.mark.parametrize(
    "make",
    [
        bomb("PNG", "1", 170_000_000),
        bomb("PNG", "1", 100_000_000),
        bomb("PNG", "L", 16_000_000),
        bomb("PNG", "RGBA"),
        bomb("PNG", exif=exif(TURNED)),
        bomb("WEBP", "RGBA", lossless=True, exif=exif(TURNED)),
        bomb("WEBP", "RGBA", 16_000_000, lossless=True),
        bomb("JPEG", progressive=True, quality=1, subsampling=0, exif=exif(TURNED)),
        text_bomb,
    ],
    ids=range(9),
)
def test_a_small_file_costs_little_memory(make: Callable[[], bytes]) -> None:
    data = make()
    assert len(data) < 30_000
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", COST], input=data, stdout=subprocess.PIPE, cwd=root, check=True)
    assert float(done.stdout) < 50  # MB


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks: bytes) -> bytes:
    data = file_of(NOISE)
    return data[:33] + chunks + data[33:]  # behind IHDR


def jpeg_with(segments: bytes) -> bytes:
    data = file_of(NOISE, "JPEG")
    return data[:2] + segments + data[2:]


def jpeg_of_scans(count: int) -> bytes:
    """The last scan of a progressive JPEG so many times."""
    data = file_of(NOISE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def webp_with(chunks: bytes) -> bytes:
    data = file_of(NOISE, "WEBP", exif=exif(UPRIGHT))[12:] + chunks
    return b"RIFF" + struct.pack("<I", 4 + len(data)) + b"WEBP" + data


@pytest.mark.parametrize(
    "data",
    [
        png_with(chunk(b"teSt") * 100_000),
        png_with(chunk(b"tEXt", b"k\0v") * 100_000),
        png_with(
            chunk(b"zTXt", b"\0\0" + zlib.compress(b"x" * 2**20)) * 600
        ),  # without a keyword Pillow counts no byte
        jpeg_with(b"\xff\xfe\0\x02" * 100_000),
        jpeg_with(b"\xff" * 1_000_000),
        jpeg_with(b"\xff\xed\0\x02" * 100),
        jpeg_of_scans(1000),
        webp_with(b"abcd\0\0\0\0" * 100_000),
    ],
    ids=range(8),
)
def test_a_file_of_many_small_parts_costs_little_time(data: bytes) -> None:
    start = time.thread_time()
    assert "more parts" in refusal(data)
    assert time.thread_time() - start < 0.1


def test_what_encoders_write_has_few_parts() -> None:
    parts = [
        chunk(b"IDAT", b"") * 900,
        chunk(b"tEXt", b"k\0v") * 50,
        chunk(b"zTXt", b"k\0\0" + zlib.compress(b"v")) * 50,
    ]
    for part in parts:
        assert kept(png_with(part)).size == NOISE.size
    assert kept(jpeg_with(b"\xff\xfe\0\x02" * 500)).size == NOISE.size
    assert kept(jpeg_of_scans(20)).size == NOISE.size
    assert kept(webp_with(b"abcd\0\0\0\0" * 500)).size == NOISE.size


def test_pixels_are_counted_before_they_are_decoded() -> None:
    assert "more than 1,000,000 pixels" in refusal(file_of(NOISE.resize((1001, 1000))), most_pixels=1_000_000)
    assert "more than 16,777,216 pixels" in refusal(file_of(flat(17_000_000, "1")))
    assert "13671×1024 pixels" in refusal(file_of(flat(14_000_000, "1")))


def test_a_large_photograph_is_accepted() -> None:
    assert kept(file_of(Image.effect_noise((2400, 1600), 50), "JPEG", quality=60)).size == (2400, 1600)
