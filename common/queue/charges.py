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
    """

    base: float
    images: int
    start: float | None = None

    def __add__(self, later: "Charge") -> "Charge":
        start = self.start if later.start is None else later.start
        return Charge(max(self.base, later.base), self.images + later.images, start)


Charges = Mapping[UUID, Charge]  # by tenant


def add(charges: Charges, later: Charges) -> Charges:
    """Both together. `later` was made by a claim that knew `charges`."""
    return {**charges, **{tenant: charges[tenant] + one if tenant in charges else one for tenant, one in later.items()}}


def collect(connection: Connection, charges: Charges) -> Collection[UUID]:
    """Charge the tenants that nobody has locked, and return them."""
    if not charges:
        return ()
    parameters = {**by_tenant(charges), "starts": [charge.start for charge in charges.values()]}
    return connection.execute(COLLECT, parameters).scalars().all()


def by_tenant(charges: Charges) -> dict[str, list[UUID] | list[float] | list[int]]:
    """The parameters `tenants`, `bases` and `owed`: three lists in the same order."""
    return {
        "tenants": list(charges),
        "bases": [charge.base for charge in charges.values()],
        "owed": [charge.images for charge in charges.values()],
    }


# Advances the virtual time of tenants.
COLLECT = text("""
    WITH charge AS (
        SELECT * FROM unnest(
            cast(:tenants AS uuid[]), cast(:bases AS float8[]), cast(:owed AS int[]), cast(:starts AS float8[])
        ) AS charge(id, base, images, start)),
    locked AS MATERIALIZED (
        SELECT id FROM tenants WHERE id IN (SELECT id FROM charge) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE tenants SET
        virtual_start = greatest(virtual_start, charge.start),
        virtual_time = greatest(virtual_time, charge.base) + charge.images / weight
    FROM charge JOIN locked USING (id) WHERE tenants.id = charge.id RETURNING tenants.id
""")
