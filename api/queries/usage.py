"""Usage as it is read: sums of the ledger by day, tenant, key, model or tier, and what they cost.

Exact at any moment: one statement reads what is folded into days and what is not. A cost is today's price of the
catalogue, also for what was rendered before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy import Connection, Row, text

from common.catalog.catalog import Catalog
from common.enums import Tier
from common.usage.ledger import USED

Dimension = Literal["day", "tenant", "key", "model", "tier"]

MOST_ROWS = 10_000
# Of each dimension its column of the ledger, in the order in which rows are sorted.
COLUMNS: Mapping[Dimension, str] = {
    "day": "day",
    "tenant": "tenant_id",
    "key": "key_id",
    "model": "model",
    "tier": "tier",
}


class Sums(BaseModel):
    """What was stored. Failed and flagged images, and what was rendered in vain, count nowhere."""

    images: int
    gpu_seconds: float = Field(description="Images that were rendered together share the time of their call.")
    megapixels: float = Field(description="Of 1,000,000 pixels.")
    bytes: int = Field(description="As they were stored; deleted ones too.")
    cost: float | None = Field(description="At the prices of today. Null if no model of it has a price.")


class Usage(Sums):
    """Sums of one group. It has the fields that it is grouped by, and no other of them."""

    day: date = Field(default=date.min, description="In UTC.")
    tenant_id: UUID = UUID(int=0)
    tenant: str | None = Field(default=None, description="Its name; null if it is gone.")
    key_id: UUID | None = Field(default=None, description="Null: submitted before usage was recorded.")
    key: str | None = Field(default=None, description="Its name.")
    model: str = ""
    tier: Tier = Tier.STANDARD


@dataclass
class _Group:
    """Sums that grow."""

    labels: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    gpu_ms: int = 0
    pixels: int = 0
    bytes: int = 0
    cost: Decimal | None = None

    def add(self, row: Row[Any], catalog: Catalog) -> None:
        self.images += row.images
        self.gpu_ms += row.gpu_ms
        self.pixels += row.pixels
        self.bytes += row.bytes
        model = catalog.models.get(row.model)
        if model and model.price:
            self.cost = (self.cost or Decimal()) + model.price.of(row.images, row.pixels)

    @property
    def sums(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "gpu_seconds": self.gpu_ms / 1000,
            "megapixels": self.pixels / 1_000_000,
            "bytes": self.bytes,
            "cost": None if self.cost is None else float(round(self.cost, 6)),
        }


def find_usage(
    connection: Connection,
    tenant_id: UUID | None,
    first: date,
    last: date,
    by: Collection[Dimension],
    catalog: Catalog,
) -> tuple[list[Usage], Sums] | None:
    """The sums from the first to the last day by these dimensions, sorted, and the sum of them all.

    No tenant: of all of them. None if there are more than MOST_ROWS rows to add up.
    """
    asked = [dimension for dimension in COLUMNS if dimension in by]
    priced: list[Dimension] = [] if "model" in asked else ["model"]
    statement = text(_statement([*asked, *priced], own=tenant_id is not None))
    parameters = {"first": first, "last": last, "tenant": tenant_id, "limit": MOST_ROWS + 1}
    rows = connection.execute(statement, parameters).all()
    if len(rows) > MOST_ROWS:
        return None
    groups, total = dict[tuple[Any, ...], _Group](), _Group()
    for row in rows:
        labels = {name: row._mapping[name] for name in labels_of(asked)}
        groups.setdefault(tuple(labels.values()), _Group(labels)).add(row, catalog)
        total.add(row, catalog)
    return [Usage(**group.labels, **group.sums) for group in groups.values()], Sums(**total.sums)


def labels_of(by: Iterable[Dimension]) -> list[str]:
    """The fields of a row that say what it is the sum of."""
    return [name for dimension in by for name in dict.fromkeys((COLUMNS[dimension], dimension))]


def _statement(grouped: Sequence[Dimension], *, own: bool) -> str:
    columns = ", ".join(COLUMNS[dimension] for dimension in grouped)
    return READ.format(
        columns=columns,
        of_tenant=OF_TENANT if own else "",
        names="".join(NAMES[dimension] for dimension in grouped if dimension in NAMES),
        joins="".join(JOINS[dimension] for dimension in grouped if dimension in JOINS),
    )


OF_TENANT = "AND tenant_id = :tenant"
NAMES: Mapping[Dimension, str] = {"tenant": ", tenants.name AS tenant", "key": ", api_keys.name AS key"}
JOINS: Mapping[Dimension, str] = {
    "tenant": " LEFT JOIN tenants ON tenants.id = sums.tenant_id",
    # A tenant sees no name of a key that is another one's: an operator may have retried its job.
    "key": " LEFT JOIN api_keys ON api_keys.id = sums.key_id"
    " AND (api_keys.tenant_id = :tenant OR cast(:tenant AS uuid) IS NULL)",
}

# Adds up the days from the first to the last one, by columns; with the names of tenants and keys.
READ = f"""
    SELECT sums.*{{names}} FROM (
        SELECT {{columns}}, sum(images)::bigint AS images, sum(gpu_ms)::bigint AS gpu_ms,
               sum(pixels)::bigint AS pixels, sum(bytes)::bigint AS bytes
        FROM {USED} AS used WHERE day BETWEEN :first AND :last {{of_tenant}}
        GROUP BY {{columns}} ORDER BY {{columns}} LIMIT :limit) AS sums{{joins}} ORDER BY {{columns}}
"""
