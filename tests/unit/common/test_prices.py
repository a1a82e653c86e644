"""Prices of the catalogue: what is one, what images cost, and which entry is refused with a sentence that helps."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from common.catalog import catalog
from common.catalog.prices import Price, read_price
from common.config import SHIPPED_CATALOG
from common.errors import Invalid


def with_prices(tmp_path: Path, *prices: str) -> Path:
    """The catalogue that is shipped, whose first models have these prices."""
    text = SHIPPED_CATALOG.read_text("utf-8")
    for name, price in zip(("mini-zh", "zh-v0"), prices, strict=False):
        text = text.replace(f"[models.{name}]\n", f"[models.{name}]\nprice = {price}\n")
    (tmp_path / "catalog.toml").write_text(text, "utf-8")
    return tmp_path / "catalog.toml"


def test_images_and_megapixels_add_up_exactly() -> None:
    price = read_price("a", {"image": 0.1, "megapixel": 0.2, "currency": "CNY"})
    assert price == Price("CNY", Decimal("0.1"), Decimal("0.2"))
    assert price.of(3, 1_500_000) == Decimal("0.6")
    assert read_price("a", None) is None
    assert read_price("a", {"image": 0, "currency": "EUR"}).of(7, 7) == 0


@pytest.mark.parametrize(
    "entry",
    [
        0.02,
        {},
        {"currency": "CNY"},
        {"image": 0.02},
        {"image": 0.02, "currency": "yuan"},
        {"image": 0.02, "currency": 7},
        {"image": -0.02, "currency": "CNY"},
        {"image": "0.02", "currency": "CNY"},
        {"image": True, "currency": "CNY"},
        {"image": float("nan"), "currency": "CNY"},
        {"megapixel": float("inf"), "currency": "CNY"},
        {"image": 0.02, "second": 1, "currency": "CNY"},
    ],
)
def test_a_wrong_price_is_refused_with_one_that_is_right(entry: Any) -> None:
    with pytest.raises(TypeError, match=r"mini-zh has a wrong price; write \{ image = 0.02, currency = \"CNY\" \}"):
        read_price("mini-zh", entry)


def test_a_catalogue_has_prices_in_one_currency(tmp_path: Path) -> None:
    assert catalog.read(SHIPPED_CATALOG).currency is None
    file = with_prices(tmp_path, '{ image = 0.02, currency = "CNY" }', '{ megapixel = 1, currency = "CNY" }')
    read = catalog.read(file)
    assert (read.currency, read.get("zh-v0").price) == ("CNY", Price("CNY", megapixel=Decimal(1)))
    assert read.get("taiyi").price is None

    with pytest.raises(Invalid, match="in CNY, EUR; all must be in one currency"):
        catalog.read(with_prices(tmp_path, '{ image = 1, currency = "CNY" }', '{ image = 1, currency = "EUR" }'))
    with pytest.raises(Invalid, match="wrong price"):
        catalog.read(with_prices(tmp_path, "{ image = 1 }"))
