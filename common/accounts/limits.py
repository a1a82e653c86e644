"""Limits: what a tenant may take at once, in a day or in a minute. Pure values; who is over one is found elsewhere.

A tenant has its own limits by name (`tenants.limits`); what they leave out is as in the settings, HUAFANG_LIMIT_….
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from common.accounts import sentence
from common.config import Settings
from common.errors import Invalid


@dataclass(frozen=True)
class Limits:
    """The limits that hold for a tenant, each a number from 0; None: unlimited."""

    waiting_images: int | None = None  # that have not ended, with those that batches still expand to
    waiting_interactive: int | None = None  # of them, in the tier `interactive`
    images_a_day: int | None = None  # submitted in a day (UTC)
    preparing_batches: int | None = None  # that are checked or expanded
    stored_bytes: int | None = None  # of images, uploads and datasets
    requests_a_minute: int | None = None  # of each process of the API
    open_streams: int | None = None  # and waits, of each process of the API
    keys: int | None = None  # that are neither revoked nor expired

    @classmethod
    def in_settings(cls, settings: Settings) -> "Limits":
        """The limits of a tenant that has none of its own."""
        return cls(**{name: getattr(settings, f"limit_{name}") for name in NAMES})

    def with_own(self, stored: Mapping[str, Any]) -> "Limits":
        """These, where a tenant has no own ones. Ignores names that only newer code knows."""
        own = {name: stored[name] for name in NAMES if name in stored}
        return replace(self, **own) if own else self

    @property
    def count_images(self) -> bool:
        """Whether a submission has to be counted."""
        return not (self.waiting_images is None and self.waiting_interactive is None and self.images_a_day is None)


NAMES = tuple(field.name for field in fields(Limits))
LARGEST = 2**53 - 1  # what every JSON reader keeps


def check(limits: Mapping[str, int | None]) -> None:
    """Raises Invalid for a name or a number that is no limit."""
    for name, value in limits.items():
        if name not in NAMES:
            raise Invalid.field("limits", sentence("limit_unknown"))
        if value is not None and not 0 <= value <= LARGEST:
            raise Invalid.field(f"limits.{name}", sentence("limit_out_of_range", most=LARGEST))
