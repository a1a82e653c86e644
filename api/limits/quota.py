"""What an answer says of the limits of its tenant: the fields `RateLimit-Policy` and `RateLimit`.

    RateLimit-Policy: "requests_a_minute";q=6000;w=60, "images_a_day";q=50000;w=86400;qu="images"
    RateLimit: "requests_a_minute";r=5990;t=42

As in draft-ietf-httpapi-ratelimit-headers-11: q and its unit qu, the window w, what remains r, and in how many seconds
it resets t. The policies are all that the tenant has; remaining is only said of what this request has counted.
"""

from dataclasses import dataclass, field

from common.accounts.limits import NAMES, Limits
from common.errors import LimitReached

DAY_S, MINUTE_S = 86_400, 60
WINDOWS = {"images_a_day": DAY_S, "requests_a_minute": MINUTE_S}
UNITS = {
    "waiting_images": "images",
    "waiting_interactive": "images",
    "images_a_day": "images",
    "preparing_batches": "batches",
    "stored_bytes": "content-bytes",
    "open_streams": "concurrent-requests",
    "keys": "keys",
}  # requests_a_minute: the draft's own, requests


@dataclass
class Quota:
    """The limits of a request's tenant; and of those that it counted, what remains, and for how many seconds."""

    limits: Limits
    remaining: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def note(self, error: LimitReached) -> None:
        """What remains of the limit that the request has reached."""
        if error.limit:
            self.remaining[error.limit] = max(0, error.allowed - error.used), error.retry_after_s

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Empty for a tenant without limits: a field has no value for that."""
        policies = [_policy(name, limit) for name in NAMES if (limit := getattr(self.limits, name)) is not None]
        remaining = [_remaining(name, *left) for name, left in self.remaining.items()]
        fields = {b"ratelimit-policy": policies, b"ratelimit": remaining}
        return [(name, ", ".join(items).encode()) for name, items in fields.items() if items]


def _policy(name: str, limit: int) -> str:
    window = f";w={WINDOWS[name]}" if name in WINDOWS else ""
    unit = f';qu="{UNITS[name]}"' if name in UNITS else ""
    return f'"{name}";q={limit}{window}{unit}'


def _remaining(name: str, left: int, resets_s: int | None) -> str:
    return f'"{name}";r={left}' + (f";t={resets_s}" if resets_s is not None else "")
