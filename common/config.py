"""Settings, from HUAFANG_* variables: the only reader of the environment. Other modules get them as an argument."""

import os
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from pydantic import ByteSize, Field, NonNegativeInt, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.labels.label import LabelMode, check_producer

PublicPart = Literal["metrics", "docs", "readiness"]
SHIPPED_CATALOG = Path(__file__).resolve().parent.parent / "models" / "catalog.toml"


def proxy_variable(scheme: str) -> str:
    """The variable that names the proxy of a URL scheme, or of `all`, spelled as in the environment."""
    return next((name for name in os.environ if name.lower() == f"{scheme}_proxy"), f"{scheme}_proxy")


def user_home() -> Path:
    """`/` for a user without HOME and without an entry in /etc/passwd, as in containers: nothing is found there."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")


class Settings(BaseSettings):
    """The settings of one process of the farm. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="HUAFANG_", frozen=True, extra="ignore")

    # Addresses and credentials
    home: Path = Field(default_factory=lambda: user_home() / ".local" / "share" / "huafang")
    database_url: SecretStr = SecretStr("postgresql://huafang@127.0.0.1:5432/huafang")
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    s3_endpoint_url: str | None = None  # None: Amazon's own
    s3_public_url: str | None = None  # what presigned links start with, if clients reach the store by another address
    s3_bucket: str = "huafang"
    s3_region: str = "us-east-1"
    s3_access_key: str | None = None  # None: boto3's own search (instance roles and the like)
    s3_secret_key: SecretStr | None = None

    # Models and devices
    catalog: Path = SHIPPED_CATALOG
    models_dir: Path | None = None  # imported models, for all processes of this host; None: `models` in the home
    default_model: str | None = None  # None: the catalogue's default for this kind of device
    device: str = "auto"  # auto, cpu, cuda, cuda:1, cuda:all, mps, or stub: renders from the seed, without torch
    models: str = ""  # comma-separated names this worker serves; empty: all of the catalogue
    worker_name: str | None = None  # shown to people; None: host and device
    torch_threads: int | None = None  # None: torch decides
    model_memory: ByteSize | None = None  # for all models, as 10GB; None: half of a GPU's, 1/4 of the RAM

    # AI labels (GB 45438-2025) of what is rendered
    ai_label: LabelMode = "off"  # implicit: in the metadata; visible: in a corner of the picture too
    ai_label_producer: str = Field(default="", validate_default=True)  # the provider's code; needed where labels are on

    # Prompts
    policy: Path | None = None  # the operator's file of rules that refuse prompts, for the API and control workers

    # The API
    key_pepper: SecretStr = SecretStr("")  # mixed into the HMAC of every API key; never change it
    trusted_proxies: str = "127.0.0.1"  # whose X-Forwarded-* headers are believed; * for all
    public: str = "metrics,docs,readiness"  # what is read without a key; what is left out needs the scope viewer
    upload_limit: int = 2_000_000_000  # bytes of one file
    picture_limit: int = 20_000_000  # bytes of one picture
    picture_pixels: int = 16_777_216  # of one picture, checked before it is decoded

    # Intervals and limits
    lease_s: float = 15
    beat_s: float = 5
    sweep_s: float = 3
    drain_s: float = 30
    trial_s: float = 60  # until the first trial of a quarantined worker; then 5 times, and 15 times as long
    cannot_store_s: float = 60  # of a worker; then others that can store get what it holds
    upload_days: float = 30  # how long an upload is kept after its last use
    lease_days: float = 30  # how long ended leases are kept, for the timelines of jobs
    audit_days: float = 365  # how long audit records are kept
    sweep: bool = True  # off only to test that messages alone render everything

    # Of a tenant that has no limits of its own; None: unlimited. What each means: `common.accounts.limits`
    limit_waiting_images: NonNegativeInt | None = None
    limit_waiting_interactive: NonNegativeInt | None = None
    limit_images_a_day: NonNegativeInt | None = None
    limit_preparing_batches: NonNegativeInt | None = None
    limit_stored_bytes: ByteSize | None = None
    limit_requests_a_minute: NonNegativeInt | None = None
    limit_open_streams: NonNegativeInt | None = None
    limit_keys: NonNegativeInt | None = None

    # How long a phase of a worker may take before the process aborts. On a CPU the first three are ten times as long.
    load_limit_s: float = 600  # while a model is imported: from one sign of progress to the next
    step_limit_s: float = 120
    decode_limit_s: float = 120
    store_limit_s: float = 300  # to encode an image, or for one try to store or publish it

    # The command line
    url: str | None = None  # the address of the farm; None: the local one
    key: SecretStr | None = None  # an API key for it; None: the local farm's own

    log_level: str = "INFO"

    @field_validator("public")
    @classmethod
    def _known_parts(cls, value: str) -> str:
        if unknown := set(_names(value)) - set(get_args(PublicPart)):
            raise ValueError(f"{', '.join(sorted(unknown))}: known are {', '.join(get_args(PublicPart))}")
        return value

    @field_validator("ai_label_producer")
    @classmethod
    def _producer_if_labelled(cls, value: str, info: ValidationInfo) -> str:
        return value if info.data.get("ai_label", "off") == "off" else check_producer(value)

    @cached_property
    def public_parts(self) -> frozenset[str]:
        return frozenset(_names(self.public))

    @cached_property
    def model_store(self) -> Path:
        return (self.models_dir or self.home / "models").expanduser().absolute()

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        return _names(self.models)


def _names(listed: str) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())
