"""Limits: what a tenant may take at once, in a day or in a minute. Pure values; who is over one is found elsewhere.

A tenant has its own limits by name (`tenants.limits`); what they leave out is as in the settings, HUAFANG_LIMIT_….
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from common.config import Settings

MOST = 2**53 - 1  # JSON readers keep it exact
Limit = Annotated[int, Field(strict=True, ge=0, le=MOST)]


class TenantLimits(BaseModel):
    """The limits of one tenant. What is left out is as in the settings of the farm; null: unlimited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    waiting_images: Limit | None = Field(
        None, description="Images that have not ended, with those that batches still expand to.", examples=[100_000]
    )
    waiting_interactive: Limit | None = Field(
        None, description="Those of them in the tier `interactive`.", examples=[200]
    )
    images_a_day: Limit | None = Field(None, description="Images submitted in a day (UTC).", examples=[50_000])
    preparing_batches: Limit | None = Field(None, description="Batches that are checked or expanded.", examples=[10])
    stored_bytes: Limit | None = Field(
        None, description="Bytes of stored images, uploads and datasets.", examples=[500_000_000_000]
    )
    requests_a_minute: Limit | None = Field(
        None, description="Requests in a minute, of each process of the API.", examples=[6_000]
    )
    open_streams: Limit | None = Field(
        None, description="Event streams and waits at once, of each process of the API.", examples=[100]
    )
    keys: Limit | None = Field(None, description="API keys that are neither revoked nor expired.", examples=[50])

    @property
    def stored(self) -> dict[str, int | None]:
        """As `tenants.limits` holds them: without what was left out."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True)
class Limits:
    """The limits that hold for a tenant, each a number from 0; None: unlimited."""

    waiting_images: int | None = None
    waiting_interactive: int | None = None
    images_a_day: int | None = None
    preparing_batches: int | None = None
    stored_bytes: int | None = None
    requests_a_minute: int | None = None
    open_streams: int | None = None
    keys: int | None = None

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
