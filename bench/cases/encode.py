"""The CPU time of a 512×512 image outside the pipeline. The files of a photograph (structure at every scale, and
grain), of flat shapes like mini-zh's, and of noise, each beside Pillow's defaults; and everything that a worker does
with an image on its way to the store: levels to bytes (on a GPU the device does that), a PNG with its texts, sha256.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from bench.harness.measurement import Figures, Goal, Options, Sides
from worker.render.encode import encode

Pixels = NDArray[np.uint8]
SIDE = 512
FORMATS = ("png", "webp", "jpeg")
CPU, SIZE = "CPU ms", "KB"
TEXTS = {
    "recipe": '{"guidance":7.5,"height":512,"prompt":"女孩们打开了另一世界的大门","steps":50,"width":512}',
    "worker": '{"device":"cuda","name":"some accelerator","precision":"fp16","torch":"2.13.0"}',
    "seed": "42",
}
ALL = "from levels to sha256"

GOALS = (
    Goal("png of a photo, Pillow", "png of a photo", CPU, at_least=10),
    Goal("png of a photo", "png of a photo, Pillow", SIZE, at_most=1.1),
    Goal(ALL, None, CPU, at_most=15),
    *(Goal(f"{format} of a photo", None, CPU, at_most=15) for format in ("webp", "jpeg")),
    *(Goal(f"png of {of}, Pillow", f"png of {of}", CPU) for of in ("shapes", "noise")),
    *(Goal(f"png of {of}", f"png of {of}, Pillow", SIZE) for of in ("shapes", "noise")),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    times = 3 if options.quick else 30
    rng = np.random.default_rng(0)
    subjects = {"a photo": photo(rng), "shapes": shapes(), "noise": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)}
    levels: NDArray[np.float32] = np.divide(photo(rng), 255, dtype=np.float32)
    found: dict[str, Callable[[], Figures]] = {ALL: partial(measured, lambda: everything(levels), times)}
    for format in FORMATS:
        for name, pixels in subjects.items():
            found[f"{format} of {name}"] = partial(measured, partial(encode, pixels, format, TEXTS), times)
            found[f"{format} of {name}, Pillow"] = partial(measured, partial(by_pillow, pixels, format), times)
    yield found


def measured(make: Callable[[], bytes], times: int) -> Figures:
    """CPU time of all threads."""
    make()
    began = time.process_time()
    for _ in range(times):
        file = make()
    return {CPU: (time.process_time() - began) / times * 1000, SIZE: len(file) / 1000}


def everything(levels: NDArray[np.float32]) -> bytes:
    file = encode((levels * 255).round().astype(np.uint8), "png", TEXTS)
    hashlib.sha256(file).hexdigest()
    return file


def by_pillow(pixels: Pixels, format: str) -> bytes:
    file = io.BytesIO()
    options = {} if format == "png" else {"quality": 95}  # ours
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def photo(rng: np.random.Generator) -> Pixels:
    def layer(side: int) -> NDArray[np.float64]:
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 4

    grain = rng.normal(30, 4, (SIDE, SIDE, 3))
    return (layer(8) + layer(32) + layer(128) + grain).clip(0, 255).astype(np.uint8)


def shapes() -> Pixels:
    """With soft edges, as a decoder leaves them."""
    picture = Image.new("RGB", (SIDE, SIDE), (250, 250, 248))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((120, 120, 380, 380), fill=(222, 48, 48))
    draw.rectangle((300, 60, 480, 150), fill=(48, 100, 214))
    return np.asarray(picture.resize((SIDE // 4, SIDE // 4)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
