"""Settings, from HUAFANG_* variables: the only reader of the environment. Everybody else gets them as an argument."""

from functools import cached_property
from pathlib import Path

from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

SHIPPED_CATALOG = Path(__file__).resolve().parent.parent / "models" / "catalog.toml"


class Settings(BaseSettings):
    """What one process of the farm needs to know. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="HUAFANG_", frozen=True, extra="ignore")

    # Where things are.
    home: Path = Field(default_factory=lambda: Path.home() / ".local" / "share" / "huafang")
    database_url: SecretStr = SecretStr("postgresql://huafang@127.0.0.1:5432/huafang")
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    s3_endpoint_url: str | None = None  # None: Amazon's own
    s3_public_url: str | None = None  # what presigned links start with, where clients see another address
    s3_bucket: str = "huafang"
    s3_region: str = "us-east-1"
    s3_access_key: str | None = None  # None: boto3's own search (instance roles and the like)
    s3_secret_key: SecretStr | None = None

    # The catalogue and what a worker makes of it.
    catalog: Path = SHIPPED_CATALOG
    models_dir: Path | None = None  # what was imported, for all processes of this host; None: `models` in the home
    default_model: str | None = None  # None: the catalogue's default for this kind of device
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps, or stub: paints from the seed, needs no torch
    models: str = ""  # comma-separated names this worker serves; empty: all of the catalogue
    worker_name: str | None = None  # shown to people; None: host and device
    torch_threads: int | None = None  # None: what torch finds
    model_memory: ByteSize | None = None  # of all models it holds, as 10GB; None: half of a GPU's, a quarter of the RAM

    # The API.
    key_pepper: SecretStr = SecretStr("")  # mixed into the HMAC of every API key; never change it
    trusted_proxies: str = "127.0.0.1"  # whose X-Forwarded-* headers are believed; * for all
    upload_limit: int = 2_000_000_000  # bytes of one file
    picture_limit: int = 20_000_000  # bytes of one picture
    picture_pixels: int = 16_777_216  # that one picture may have, looked up before it is decoded

    # Rhythm.
    lease_s: float = 15
    beat_s: float = 5
    sweep_s: float = 3
    drain_s: float = 30
    upload_days: float = 30  # that an upload is kept after it was last asked for
    audit_days: float = 365  # that it is kept who did what
    sweep: bool = True  # off only to prove that messages alone render everything

    # How long a phase of a worker's work may take before it ends itself. On a CPU the first three count tenfold.
    load_limit_s: float = 600  # of one that has to be imported first: from one sign of progress to the next
    step_limit_s: float = 120
    decode_limit_s: float = 120
    store_limit_s: float = 300  # to encode a picture, or to try once to store or to publish

    # The command line.
    url: str | None = None  # the farm to talk to; None: the local one
    key: SecretStr | None = None  # an API key for it; None: the local farm's own

    log_level: str = "INFO"

    @cached_property
    def model_store(self) -> Path:
        return (self.models_dir or self.home / "models").expanduser().absolute()

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
