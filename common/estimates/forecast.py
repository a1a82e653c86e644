"""A forecast: when what waits will have ended, by the speed of the farm and the order in which it claims. Pure.

The farm is looked at as a flow. At any moment each worker renders of the highest tier that has something for it;
tenants share its time by their weights, and a tenant gets its oldest lane first. What workers hold already comes before
all else. A lane of few microbatches occupies few workers, and a worker that lacks the model loads it first. Left out:
the one turn in twenty of lower tiers, what will be submitted later, retries, and that workers prefer models that they
have in memory for a while.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from uuid import UUID

from common.enums import Tier
from common.estimates.speed import Kind, Quantile, Speed

TIERS = {tier: place for place, tier in enumerate(Tier)}  # the highest first
HELD = -1  # in the place of a tier: what workers hold
NOTHING = 1e-9


@dataclass(frozen=True)
class Worker:
    """One that takes work, or will when it has started."""

    models: frozenset[str]
    resident: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Waiting:
    """Images that wait together: of one lane, or of something that would be submitted.

    `order`: by which a tenant's come after one another. `from_s`: nothing of it can be claimed earlier. `held_by`: so
    many workers hold it already, and `done` of its images were done if the workers went on at their usual speed.
    """

    key: Hashable
    tier: Tier
    tenant: Hashable
    kind: Kind
    images: int
    order: UUID
    weight: float = 1.0
    from_s: float = 0.0
    held_by: int = 0
    done: float = 0.0

    @property
    def place(self) -> int:
        return HELD if self.held_by else TIERS[self.tier]


@dataclass
class Flow:
    """One `Waiting` as it goes on: how many seconds of a worker it still takes, and how far it was when."""

    of: Waiting
    left: float  # in seconds of a worker; infinite while the speed is unknown
    total: float
    width: int  # workers that it can occupy
    tail: float  # until its last microbatch is published, while the next one is rendered
    reached: list[tuple[float, float]] = field(default_factory=list)  # moments, and the share that is done

    def advance(self, now: float, seconds: float, rate: float) -> None:
        if not self.reached or self.reached[-1][1] == 0:
            self.reached = [(now, 0.0)]
        self.left -= rate * seconds
        if self.left < NOTHING * max(self.total, 1):
            self.left = 0.0
        self.reached.append((now + seconds, 1 - self.left / self.total))


class Forecast:
    """When what waits will have ended, in seconds from now."""

    def __init__(self, flows: Iterable[Flow]) -> None:
        self._flows = {flow.of.key: flow for flow in flows}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flows

    def end(self, key: Hashable, images: int | None = None) -> float:
        """When the first so many images of this key have ended, or all. Infinite while nobody knows.

        More than there are: those that came since are as many more of the same.
        """
        flow = self._flows[key]
        share = images / flow.of.images if images else 1.0
        if share > 1:
            return share * self.end(key)
        before = (0.0, 0.0)
        for moment, reached in flow.reached:
            if reached >= share - NOTHING:
                part = (share - before[1]) / (reached - before[1]) if reached > before[1] else 1.0
                return before[0] + part * (moment - before[0]) + flow.tail
            before = moment, reached
        return inf if flow.left else flow.tail


def forecast(waiting: Sequence[Waiting], workers: Sequence[Worker], speed: Speed, quantile: Quantile) -> Forecast:
    """Let all that waits flow through the workers."""
    ordered = sorted(waiting, key=lambda one: (one.place, one.order.int))
    flows, loaded = list[Flow](), set[str]()
    for one in ordered:
        flows.append(_flow(one, workers, speed, quantile, has_loaded=one.kind.model in loaded))
        loaded.add(one.kind.model)
    now, pools = 0.0, _pools(workers)
    while active := [flow for flow in flows if flow.left]:
        rates = _rates([flow for flow in active if flow.of.from_s <= now + NOTHING], pools)
        ends = [flow.left / rate for flow, rate in rates if flow.left < inf]
        begins = [flow.of.from_s - now for flow in active if flow.of.from_s > now + NOTHING]
        if not ends and not begins:
            break
        step = min(ends + begins)
        for flow, rate in rates:
            if flow.left < inf:
                flow.advance(now, step, rate)
        now += step
    return Forecast(flows)


def _flow(one: Waiting, workers: Sequence[Worker], speed: Speed, quantile: Quantile, has_loaded: bool) -> Flow:
    size = max(speed.images_of_call(one.kind.model), 1)
    calls, rest = divmod(one.images, size)
    width = one.held_by or max(calls + bool(rest), 1)
    lengths = [(images, speed.seconds(one.kind, images, quantile)) for images in {size if calls else rest, rest} - {0}]
    known = {images: seconds for images, seconds in lengths if seconds is not None}
    if len(known) < len(lengths):
        return Flow(one, inf, inf, width, 0.0)
    if one.held_by:
        each = max(one.images / one.held_by, 1)
        left = (one.images - one.done) / each * (speed.seconds(one.kind, ceil(each), quantile) or 0)
        return Flow(one, max(left, NOTHING), max(left, NOTHING), width, 0.0)
    loads = _loads(one, workers, speed, quantile, width, has_loaded)
    total = loads + calls * known.get(size, 0.0) + known.get(rest, 0.0)
    last = rest or size
    tail = max((speed.latency(one.kind, last, quantile) or 0) - known[last], 0.0)
    return Flow(one, max(total, NOTHING), max(total, NOTHING), width, tail)


def _loads(
    one: Waiting, workers: Sequence[Worker], speed: Speed, quantile: Quantile, width: int, has_loaded: bool
) -> float:
    """Seconds that workers spend loading the model for it."""
    serving = [worker for worker in workers if one.kind.model in worker.models]
    resident = sum(one.kind.model in worker.resident for worker in serving)
    loads = 0 if has_loaded else max(min(len(serving), width) - resident, 0)
    return loads * speed.load(one.kind.model, quantile)


def _pools(workers: Sequence[Worker]) -> Mapping[frozenset[str], int]:
    """How many workers serve the same models."""
    pools: dict[frozenset[str], int] = {}
    for worker in workers:
        pools[worker.models] = pools.get(worker.models, 0) + 1
    return dict(sorted(pools.items(), key=lambda pool: len(pool[0])))  # who can do little is used first


def _rates(flows: Sequence[Flow], pools: Mapping[frozenset[str], int]) -> list[tuple[Flow, float]]:
    """How many workers each of them occupies now; without those that occupy none."""
    rates = dict.fromkeys(range(len(flows)), 0.0)
    for models, workers in pools.items():
        free = float(workers)
        for place in sorted({flow.of.place for flow in flows}):
            if free <= NOTHING:
                break
            mine = [n for n, flow in enumerate(flows) if flow.of.place == place and flow.of.kind.model in models]
            free = _share(free, mine, flows, rates)
    return [(flows[number], rate) for number, rate in rates.items() if rate > NOTHING]


def _share(free: float, numbers: Sequence[int], flows: Sequence[Flow], rates: dict[int, float]) -> float:
    """Share workers among tenants by weight, and of a tenant to its oldest first. What is left of them."""
    tenants: dict[Hashable, list[int]] = {}
    for number in numbers:
        tenants.setdefault(flows[number].of.tenant, []).append(number)
    while free > NOTHING and tenants:
        weights = {tenant: flows[own[0]].of.weight for tenant, own in tenants.items()}
        portion, satisfied = free / sum(weights.values()), list[Hashable]()
        for tenant, own in tenants.items():
            amount = portion * weights[tenant]
            for number in own:
                taken = min(amount, flows[number].width - rates[number])
                rates[number] += taken
                amount -= taken
                free -= taken
            if amount > NOTHING:
                satisfied.append(tenant)
        if not satisfied:
            break
        for tenant in satisfied:
            del tenants[tenant]
    return free
