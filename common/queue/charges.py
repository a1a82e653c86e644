"""Charges: what tenants owe for claimed images. A process collects them after its claims, so that no claim waits.

    claim, COMMIT ──► charges of this process ──► collect, about once a second      a locked tenant is left for later

Start-time fair queueing: a microbatch starts at the virtual time of its tenant, or at the farm's if that is later, and
advances the tenant by images ÷ weight. A claim gets the charges of its process that are not collected, so its own
choice is fair at once; other processes see them a second later. A process that dies loses its charges of that second.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class Charge:
    """What one tenant owes: `images`, from the virtual time `base` on.

    `start`: when its last microbatch started, in virtual time; None if it only filled places in those of others.
    `lower`: what it owes for turns of the lower tiers, in their virtual time.
    """

    base: float
    images: int
    start: float | None = None
    lower: "Charge | None" = None

    def __add__(self, later: "Charge") -> "Charge":
        start = self.start if later.start is None else later.start
        lower = self.lower + later.lower if self.lower and later.lower else self.lower or later.lower
        return Charge(max(self.base, later.base), self.images + later.images, start, lower)


NOTHING = Charge(0.0, 0)


Charges = Mapping[UUID, Charge]  # by tenant


def add(charges: Charges, later: Charges) -> Charges:
    """Both together. `later` was made by a claim that knew `charges`."""
    return {**charges, **{tenant: charges[tenant] + one if tenant in charges else one for tenant, one in later.items()}}


def collect(connection: Connection, charges: Charges) -> Collection[UUID]:
    """Charge the tenants that nobody has locked, and return them."""
    if not charges:
        return ()
    starts = [charge.start for charge in charges.values()]
    lower_starts = [charge.start for charge in _lower(charges)]
    parameters = {**by_tenant(charges), "starts": starts, "lower_starts": lower_starts}
    return connection.execute(COLLECT, parameters).scalars().all()


def by_tenant(charges: Charges) -> dict[str, list[UUID] | list[float] | list[int]]:
    """The parameters `tenants`, `bases` and `owed`, and those of the lower tiers: lists in the same order."""
    return {
        "tenants": list(charges),
        "bases": [charge.base for charge in charges.values()],
        "owed": [charge.images for charge in charges.values()],
        "lower_bases": [charge.base for charge in _lower(charges)],
        "lower_owed": [charge.images for charge in _lower(charges)],
    }


def latest_starts(charges: Charges) -> tuple[float, float]:
    """When the last microbatch of these charges started, and the last one that was a turn of the lower tiers."""
    of_all = max((charge.start or 0.0 for charge in charges.values()), default=0.0)
    return of_all, max((charge.start or 0.0 for charge in _lower(charges)), default=0.0)


def _lower(charges: Charges) -> list[Charge]:
    return [charge.lower or NOTHING for charge in charges.values()]


# Advances the virtual times of tenants.
COLLECT = text("""
    WITH charge AS (
        SELECT * FROM unnest(
            cast(:tenants AS uuid[]), cast(:bases AS float8[]), cast(:owed AS int[]), cast(:starts AS float8[]),
            cast(:lower_bases AS float8[]), cast(:lower_owed AS int[]), cast(:lower_starts AS float8[])
        ) AS charge(id, base, images, start, lower_base, lower_images, lower_start)),
    locked AS MATERIALIZED (
        SELECT id FROM tenants WHERE id IN (SELECT id FROM charge) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE tenants SET
        virtual_start = greatest(virtual_start, charge.start),
        virtual_time = greatest(virtual_time, charge.base) + charge.images / weight,
        lower_start = greatest(tenants.lower_start, charge.lower_start),
        lower_time = greatest(lower_time, charge.lower_base) + charge.lower_images / weight
    FROM charge JOIN locked USING (id) WHERE tenants.id = charge.id RETURNING tenants.id
""")
