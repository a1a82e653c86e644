"""What a farm on this machine remembers between two starts: its ports and its secrets, in one private file.

The addresses follow from it: how the farm's own processes, and other machines, reach its servers.
"""

import json
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from common.config import Settings
from common.errors import Invalid, Unavailable
from embedded.processes import private_folder, write_private

LOOPBACK = "127.0.0.1"
ANYWHERE = "0.0.0.0"
DATABASE = USER = "huafang"
S3_ACCOUNT = "farm:s3"
SERVICES = ("postgres", "valkey", "s3", "api")
SECRETS = ("postgres", "valkey", "s3", "pepper")
LEAST_FREE_MB = 300
# Below the range that outgoing connections use: a client that reconnects could otherwise take its own server's port.
FIRST_PORT, PORTS = 18_000, 12_000


@dataclass(frozen=True)
class Site:
    home: Path
    listen: str = LOOPBACK
    device: str | None = None
    workers: int = 1
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The address by which this machine reaches the servers."""
        return LOOPBACK if self.listen == ANYWHERE else self.listen

    @property
    def public_host(self) -> str:
        """The address by which other machines reach them."""
        return address_of_this_machine() if self.listen == ANYWHERE else self.listen

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.ports['api']}"

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def database_url(self, host: str, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{self.secrets['postgres']}@{host}:{self.ports['postgres']}/{database}"

    def environment(self, settings: Settings) -> dict[str, str]:
        """The variables with which a process of this machine reaches the farm."""
        return {
            **self.services(settings, self.host),
            "HUAFANG_KEY_PEPPER": self.secrets["pepper"],
            "HUAFANG_HOME": str(self.home),
        }

    def services(self, settings: Settings, host: str) -> dict[str, str]:
        """The variables with which a worker reaches the servers by that address."""
        return {
            "HUAFANG_DATABASE_URL": self.database_url(host),
            "HUAFANG_REDIS_URL": f"redis://:{self.secrets['valkey']}@{host}:{self.ports['valkey']}/0",
            "HUAFANG_S3_ENDPOINT_URL": f"http://{host}:{self.ports['s3']}",
            "HUAFANG_S3_PUBLIC_URL": f"http://{self.public_host}:{self.ports['s3']}",
            "HUAFANG_S3_ACCESS_KEY": S3_ACCOUNT,
            "HUAFANG_S3_SECRET_KEY": self.secrets["s3"],
            "HUAFANG_S3_BUCKET": settings.s3_bucket,
        }


def home_of(settings: Settings) -> Path:
    return settings.home.expanduser().absolute()


def prepare_site(home: Path, listen: str = LOOPBACK, device: str | None = None, workers: int = 1) -> Site:
    """The site of a farm that is about to start: made at the first time, with new ports for those that are taken."""
    make_home(home)
    check_address(listen)
    known = find_site(home) or Site(home)
    site = replace(
        known,
        listen=listen,
        device=device,
        workers=workers,
        ports=choose_ports(listen, known.ports),
        secrets={name: secrets.token_hex(24) for name in SECRETS} | known.secrets,
    )
    remembered = asdict(site)
    del remembered["home"]  # it may be moved
    write_private(home / "farm.json", json.dumps(remembered, indent=2))
    return site


def find_site(home: Path) -> Site | None:
    try:
        return Site(home=home, **json.loads((home / "farm.json").read_text()))
    except FileNotFoundError:
        return None


def make_home(home: Path) -> None:
    """The folders, closed to others. A home that holds other things keeps its mode: it may be a shared folder."""
    try:
        is_ours = not home.exists() or not any(home.iterdir()) or (home / "farm.json").exists()
        private_folder(home)
        if is_ours:
            home.chmod(0o700)
        for name in ("run", "logs"):
            private_folder(home / name)
    except OSError as error:
        raise Unavailable(f"Cannot write to {home}: {error.strerror}; set HUAFANG_HOME to another folder.") from error
    free_mb = shutil.disk_usage(home).free >> 20
    if free_mb < LEAST_FREE_MB:
        raise Unavailable(f"Only {free_mb} MB are free on the disk of {home}; the farm needs {LEAST_FREE_MB} MB.")


def check_address(listen: str) -> None:
    if not can_bind(listen, 0):
        raise Invalid(f"Cannot listen on {listen}: it is not an IPv4 address of this machine.")


def choose_ports(listen: str, known: dict[str, int]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for service in SERVICES:
        port = known.get(service, 0)
        while port in ports.values() or not (port and can_bind(listen, port)):
            port = FIRST_PORT + secrets.randbelow(PORTS)
        ports[service] = port
    return ports


def can_bind(listen: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
        try:
            probe.bind((listen, port))
        except OSError:
            return False
        return True


def address_of_this_machine() -> str:
    """The address of the way out; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return LOOPBACK  # no network: nobody could join
        address: str = probe.getsockname()[0]
        return address
