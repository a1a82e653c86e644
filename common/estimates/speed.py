"""The speed of the farm: how many seconds a microbatch takes, by the microbatches that were published lately. Pure.

A microbatch counts from the publication of the one before it on the same worker, or from its start if the worker was
idle, to its own publication. So that is not the device alone: encoding, storing, publishing and the pauses between are
in it. What was never rendered is estimated from the most similar that was: by steps × pixels, and by the number of
images.

    p50     what is as likely to be exceeded as not
    p90     what nine of ten stay below

Both are quantiles of averages over some microbatches in a row: single ones vary, a batch adds many up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from math import sqrt
from statistics import fmean, median, quantiles

NEWEST = 60  # microbatches of a kind that count
BLOCK = 5  # microbatches that are averaged
FEW_BLOCKS = 3
LEAST_MARGIN, MARGIN_OF_FEW, MARGIN_OF_OTHERS = 1.1, 1.3, 1.5  # of p90 to p50
DEFAULT_MICROBATCH = 8  # images, until a worker says how many its calls render
ENOUGH = 3  # microbatches that need no others beside them


class Quantile(Enum):
    P50 = 0.5
    P90 = 0.9


@dataclass(frozen=True)
class Kind:
    """What decides how long a microbatch takes. `work`: steps × pixels of one image."""

    model: str
    compatibility: str
    work: float


@dataclass(frozen=True)
class Microbatch:
    """One that was published.

    `seconds`: that the worker was busy with it. `latency`: from its start to its publication. `render_s`: in pipeline
    calls, per image. `is_steady`: it was claimed before the one before it was published. `worker_rank`: 0 for a worker
    that is there now, 1 for one of the same class, 2 for others.
    """

    kind: Kind
    images: int
    seconds: float
    latency: float
    render_s: float
    is_steady: bool
    worker_rank: int = 0


@dataclass(frozen=True)
class Speed:
    """What the farm did lately. `microbatches`: the newest first.

    By model, where they are known: `image_s` is what workers measured of their pipeline calls, for models of which no
    microbatch is known; `load_s` the seconds of loads; `capacity` the images of one call.
    """

    microbatches: Sequence[Microbatch] = ()
    image_s: Mapping[str, float] | None = None
    load_s: Mapping[str, Sequence[float]] | None = None
    capacity: Mapping[str, int] | None = None

    def images_of_call(self, model: str) -> int:
        """How many images a full microbatch has."""
        if known := (self.capacity or {}).get(model):
            return known
        return max((one.images for one in self.microbatches if one.kind.model == model), default=DEFAULT_MICROBATCH)

    def seconds(self, kind: Kind, images: int, quantile: Quantile) -> float | None:
        """Of a microbatch of so many images, while the worker renders one after the other; None if unknown."""
        found, scale = self._similar(kind)
        if steady := [one for one in found if one.is_steady]:
            found = steady if len(steady) >= ENOUGH else found
        return self._of_size([(one.images, one.seconds) for one in found], scale, kind, images, quantile)

    def latency(self, kind: Kind, images: int, quantile: Quantile) -> float | None:
        """Of a microbatch of so many images, from its start until they are published; None if unknown."""
        found, scale = self._similar(kind)
        return self._of_size([(one.images, one.latency) for one in found], scale, kind, images, quantile)

    def render_s(self, kind: Kind) -> float | None:
        """In pipeline calls, per image; None if unknown."""
        found, scale = self._similar(kind)
        if found:
            full = max(one.images for one in found)
            return scale * median(one.render_s for one in found if 2 * one.images >= full)
        return (self.image_s or {}).get(kind.model)

    def load(self, model: str, quantile: Quantile) -> float:
        """Seconds of a load of the model; of any model while that is unknown, and 0 while no load is known."""
        loads = self.load_s or {}
        known = loads.get(model) or list(chain.from_iterable(loads.values())) or [0.0]
        return median(known) if quantile is Quantile.P50 else max(max(known), LEAST_MARGIN * median(known))

    def _similar(self, kind: Kind) -> tuple[list[Microbatch], float]:
        """The microbatches that tell most of this kind, and how many times as much work an image of it is."""
        of_model = [one for one in self.microbatches if one.kind.model == kind.model]
        if same := [one for one in of_model if one.kind.compatibility == kind.compatibility]:
            return _of_best_workers(same)[:NEWEST], 1.0
        of_model = [one for one in of_model if one.kind.work > 0]
        if not of_model or kind.work <= 0:
            return [], 1.0
        nearest = min((one.kind for one in of_model), key=lambda known: _distance(known.work, kind.work))
        return _of_best_workers([one for one in of_model if one.kind == nearest])[:NEWEST], kind.work / nearest.work

    def _of_size(
        self, found: Sequence[tuple[int, float]], scale: float, kind: Kind, images: int, quantile: Quantile
    ) -> float | None:
        if not found:
            alone = (self.image_s or {}).get(kind.model)
            return alone * images * (MARGIN_OF_OTHERS if quantile is Quantile.P90 else 1) if alone else None
        by_size: dict[int, list[float]] = {}
        for size, seconds in found:
            by_size.setdefault(size, []).append(seconds)
        known = {size: _typical(values, quantile) for size, values in by_size.items()}
        margin = MARGIN_OF_OTHERS if scale != 1 and quantile is Quantile.P90 else 1
        return scale * margin * _interpolate(known, images, quantile)


def _of_best_workers(found: Sequence[Microbatch]) -> list[Microbatch]:
    """Those of workers that are there now, if they are enough; else those of their class too; else all."""
    for rank in (0, 1):
        if len(best := [one for one in found if one.worker_rank <= rank]) >= ENOUGH:
            return best
    return list(found)


def _distance(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _typical(values: Sequence[float], quantile: Quantile) -> float:
    """A quantile of the averages of blocks, so that a rare slow one counts in each."""
    blocks = [fmean(values[at : at + BLOCK]) for at in range(0, len(values), BLOCK)]
    middle = median(blocks)
    if quantile is Quantile.P50:
        return middle
    if len(blocks) < FEW_BLOCKS:
        return max(*blocks, MARGIN_OF_FEW * middle)
    return max(quantiles(blocks, n=10, method="inclusive")[-1], LEAST_MARGIN * middle)


def _interpolate(known: Mapping[int, float], images: int, quantile: Quantile) -> float:
    """The seconds for so many images, by those for other numbers.

    A call for more images takes longer on a CPU and often hardly longer on a GPU: beyond what is known the time grows
    with the root of the number, and in the worst case with the number itself.
    """
    if images in known:
        return known[images]
    sizes = sorted(known)
    below, above = [size for size in sizes if size < images], [size for size in sizes if size > images]
    if not below:
        return known[above[0]] * sqrt(images / above[0])
    if not above:
        factor = images / below[-1]
        return known[below[-1]] * (factor if quantile is Quantile.P90 else sqrt(factor))
    share = (images - below[-1]) / (above[0] - below[-1])
    return known[below[-1]] + share * (known[above[0]] - known[below[-1]])
