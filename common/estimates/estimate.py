"""Estimates of jobs and batches, those that wait and those that would be submitted: all by one forecast of the farm.

An estimate is known or has a reason why not. Knows nothing of how a page shows it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from uuid import UUID

from sqlalchemy import Connection, text

from common.enums import Tier
from common.estimates import sentence
from common.estimates.farm import Farm, held_key
from common.estimates.forecast import Forecast, Waiting
from common.estimates.speed import Kind, Quantile
from common.recipes.recipe import Recipe
from common.sentences import Sentence

LAST = UUID(int=2**128 - 1)  # in the order of what waits: what would be submitted now
RATE_MARGIN = 1.3  # of p90 to p50, by the rate of a batch alone
PREPARATION_MARGIN = 1.5


@dataclass(frozen=True)
class Estimate:
    """Seconds from now until the end: as likely to be exceeded as not, and what nine of ten stay below.

    Both are None while they are unknown; then `code` and `reason` say why.
    """

    seconds: float | None
    seconds_p90: float | None
    code: str | None = None
    reason: Sentence | None = None


def kind_of(recipe: Recipe) -> Kind:
    return Kind(recipe.model, recipe.compatibility, float(recipe.steps * recipe.width * recipe.height))


def unknown(reason: Sentence) -> Estimate:
    return Estimate(None, None, reason.code, reason)


def of_new_job(farm: Farm, tenant_id: UUID, weight: float, tier: Tier, kind: Kind, images: int) -> Estimate:
    """Of a job that would be submitted now."""
    return _of_new(farm, [Waiting("new", tier, tenant_id, kind, images, LAST, weight)])


def of_new_batch(
    farm: Farm, tenant_id: UUID, weight: float, tier: Tier, kinds: Mapping[Kind, int], prompts: float, prompt_s: float
) -> Estimate:
    """Of a batch that would be submitted now. `prompt_s`: seconds that the check of a prompt takes, if it was done."""
    images = sum(kinds.values())
    lately = replace(farm.preparation, prompt_s=max(farm.preparation.prompt_s, prompt_s))
    first_s, expanded_s = lately.until_first_s(prompts, images), lately.until_expanded_s(prompts, images)
    waiting = [
        Waiting(("new", number), tier, tenant_id, kind, count, LAST, weight, first_s)
        for number, (kind, count) in enumerate(kinds.items())
        if count
    ]
    return _of_new(farm, waiting, expanded_s, lately.end_s)


def of_waiting_job(farm: Farm, waiting: Waiting, lane_id: int, ahead: int, *, is_held: bool) -> Estimate:
    """Of a job that waits: `waiting` has its own images, and so many of its lane are ahead of it.

    `is_held`: workers hold all that it has open.
    """
    key: Hashable = held_key(lane_id) if is_held else lane_id
    if key not in farm.forecast(Quantile.P50):  # it came since the farm was looked at
        return _of_new(farm, [waiting])
    images = None if is_held else ahead + waiting.images
    return _known(farm, waiting.kind, lambda forecast: forecast.end(key, images))


def of_batch(farm: Farm, batch_id: UUID, images: int, per_minute: float | None) -> Estimate:
    """Of a batch that renders: `images` are open, and so many ended a minute lately."""
    lanes = farm.lanes.get(batch_id, ())
    forecast = farm.forecast(Quantile.P50)
    keys = [key for lane in lanes for key in (lane, held_key(lane)) if key in forecast]
    if not images:
        return Estimate(0.0, 0.0)
    if not keys:
        found = unknown(sentence("too_many_lanes") if farm.has_more else sentence("not_counted"))
    else:
        kinds = [one.kind for one in farm.waiting if one.key in keys]
        end_s = farm.preparation.end_s

        def last(forecast: Forecast) -> float:
            return max(forecast.end(key) for key in keys) + end_s

        found = next(
            (one for kind in kinds if (one := _known(farm, kind, last)).seconds is None), _known(farm, kinds[0], last)
        )
    if found.seconds is None and per_minute:
        seconds = 60 * images / per_minute
        return Estimate(_rounded(seconds), _rounded(RATE_MARGIN * seconds))
    return found


def weight_of(connection: Connection, tenant_id: UUID) -> float:
    return float(connection.execute(WEIGHT, {"tenant": tenant_id}).scalar_one())


def _of_new(farm: Farm, waiting: Sequence[Waiting], least_s: float = 0.0, end_s: float = 0.0) -> Estimate:
    """`least_s`: it does not end earlier. `end_s`: until its end is noticed."""
    for one in waiting:
        if (why := _why_unknown(farm, one.kind)) is not None:
            return why
    found = []
    for quantile, margin in ((Quantile.P50, 1.0), (Quantile.P90, PREPARATION_MARGIN)):
        later = [replace(one, from_s=margin * one.from_s) for one in waiting]
        forecast = farm.forecast(quantile, later)
        last = max([forecast.end(one.key) for one in later], default=0.0)
        found.append(max(last, margin * least_s) + margin * end_s)
    return _estimate(*found)


def _known(farm: Farm, kind: Kind, end: Callable[[Forecast], float]) -> Estimate:
    if (why := _why_unknown(farm, kind)) is not None:
        return why
    return _estimate(end(farm.forecast(Quantile.P50)), end(farm.forecast(Quantile.P90)))


def _why_unknown(farm: Farm, kind: Kind) -> Estimate | None:
    if not farm.serves(kind.model):
        return unknown(sentence("no_worker", model=kind.model))
    return None if farm.knows(kind) else unknown(sentence("no_history", model=kind.model))


def _estimate(p50: float, p90: float) -> Estimate:
    if inf in (p50, p90):
        return unknown(sentence("ahead_unknown"))
    return Estimate(_rounded(p50), _rounded(max(p50, p90)))


def _rounded(seconds: float) -> float:
    return round(seconds, 1)


# The share of a tenant.
WEIGHT = text("SELECT weight FROM tenants WHERE id = :tenant")
