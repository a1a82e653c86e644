"""The limits of a tenant: its own, and else those of the settings."""

import pytest

from common.accounts.limits import NAMES, Limits
from common.config import Settings


def test_every_limit_has_a_setting_and_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(NAMES, 1):
        monkeypatch.setenv(f"HUAFANG_LIMIT_{name.upper()}", str(number))
    limits = Limits.in_settings(Settings())
    assert [getattr(limits, name) for name in NAMES] == list(range(1, len(NAMES) + 1))


def test_nothing_is_limited_unless_somebody_says_so() -> None:
    assert Limits.in_settings(Settings()) == Limits()
    assert not Limits().count_images


def test_own_limits_come_before_those_of_the_settings() -> None:
    farm = Limits(waiting_images=10, keys=5)
    assert farm.with_own({}) == farm
    assert farm.with_own({"keys": 7, "images_a_day": 3}) == Limits(waiting_images=10, keys=7, images_a_day=3)
    assert farm.with_own({"waiting_images": None, "of_newer_code": 1}) == Limits(keys=5)
