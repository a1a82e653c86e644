"""Prices: what the images of a model cost, as the entry `price` of the catalogue says. Sums are decimal, so exact."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from common.catalog import sentence
from common.errors import Invalid

FIELDS = ("image", "megapixel", "currency")
CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True)
class Price:
    """Of one image, and of one megapixel of it (1,000,000 pixels), which add up. `currency`: its code in ISO 4217."""

    currency: str
    image: Decimal = Decimal()
    megapixel: Decimal = Decimal()

    def of(self, images: int, pixels: int) -> Decimal:
        return self.image * images + self.megapixel * pixels / 1_000_000


def read_price(model: str, entry: Any) -> Price | None:
    """The price of a model's entry; None if it names none. Raises TypeError with a sentence for a wrong one."""
    if entry is None:
        return None
    known = entry if isinstance(entry, Mapping) else {}
    amounts = {name: amount for name, amount in known.items() if name != "currency"}
    is_right = bool(amounts) and known.keys() <= {*FIELDS} and all(map(_is_amount, amounts.values()))
    if not is_right or not CURRENCY.fullmatch(str(known.get("currency"))):
        raise TypeError(sentence("price_wrong", model=model))
    return Price(known["currency"], **{name: Decimal(str(amount)) for name, amount in amounts.items()})


def currency_of(prices: Iterable[Price | None]) -> str | None:
    """The one currency of all prices; None without any. Raises Invalid if there are several."""
    currencies = {price.currency for price in prices if price}
    if len(currencies) > 1:
        raise Invalid(sentence("currencies_differ", currencies=", ".join(sorted(currencies))))
    return currencies.pop() if currencies else None


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
