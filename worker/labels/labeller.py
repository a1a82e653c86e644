"""Labels rendered pictures as the operator's settings say: not at all, in their metadata, or visibly too.

The number of a picture is its key, as in datasets: so equal pictures have equal labels, whoever asked for them and
however often. Knows neither jobs nor file formats.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.config import Settings
from common.labels.label import packet
from common.recipes.img2img import Mode
from worker.labels.mark import draw_mark


class Labelled(NamedTuple):
    """`xmp`: the packet for the metadata of the picture's file."""

    pixels: NDArray[np.uint8]
    xmp: bytes | None


class Labeller:
    def __init__(self, settings: Settings) -> None:
        self._mode = settings.ai_label
        self._producer = settings.ai_label_producer

    @property
    def facts(self) -> dict[str, str]:
        """What is said of pictures and of this worker beside its class; nothing where labels are off."""
        return {} if self._mode == "off" else {"ai_label": self._mode}

    def label(self, pixels: NDArray[np.uint8], picture_key: str, mode: Mode) -> Labelled:
        """A height × width × RGB picture, marked if that is wanted, and its label."""
        if self._mode == "off":
            return Labelled(pixels, None)
        xmp = packet(self._producer, picture_key, mode)
        return Labelled(draw_mark(pixels) if self._mode == "visible" else pixels, xmp)
