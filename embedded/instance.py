"""The local farm's ports and secrets, in one private file (farm.json), and the addresses that follow from them.

Knows neither the servers' programs nor the supervisor.
"""

import json
import secrets
import shutil
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from common.config import Settings
from common.errors import Invalid, Unavailable
from embedded import sentence
from embedded.processes import private_folder, write_private

LOOPBACK = "127.0.0.1"
ANYWHERE = "0.0.0.0"
DATABASE = USER = "huafang"
S3_ACCOUNT = "farm:s3"
SERVICES = ("postgres", "valkey", "s3", "api")
SECRETS = ("postgres", "valkey", "s3", "pepper")
MIN_FREE_MB = 300
# Below the ephemeral range: otherwise an outgoing connection could take the port of a server that restarts.
FIRST_PORT, PORT_COUNT = 18_000, 12_000


@dataclass(frozen=True)
class Instance:
    home: Path
    listen: str = LOOPBACK
    device: str | None = None
    workers: int = 1
    ports: dict[str, int] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """The address of the servers for this machine."""
        return LOOPBACK if self.listen == ANYWHERE else self.listen

    @property
    def public_host(self) -> str:
        """The address of the servers for other machines."""
        return outgoing_address() if self.listen == ANYWHERE else self.listen

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.ports['api']}"

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def failure_log(self, name: str) -> Path:
        """Where it is said why this program does not start: supervisord's log where the program never ran."""
        log = self.log(name)
        return log if log.exists() else self.log("supervisord")

    def database_url(self, host: str, database: str = DATABASE) -> str:
        return f"postgresql://{USER}:{self.secrets['postgres']}@{host}:{self.ports['postgres']}/{database}"

    def environment(self, settings: Settings) -> dict[str, str]:
        """The variables for a process of this machine."""
        return {
            **self.services(settings, self.host),
            "HUAFANG_KEY_PEPPER": self.secrets["pepper"],
            "HUAFANG_HOME": str(self.home),
        }

    def services(self, settings: Settings, host: str) -> dict[str, str]:
        """The variables for a worker that reaches the servers at `host`."""
        return {
            "HUAFANG_DATABASE_URL": self.database_url(host),
            "HUAFANG_REDIS_URL": f"redis://:{self.secrets['valkey']}@{host}:{self.ports['valkey']}/0",
            "HUAFANG_S3_ENDPOINT_URL": f"http://{host}:{self.ports['s3']}",
            "HUAFANG_S3_PUBLIC_URL": f"http://{self.public_host}:{self.ports['s3']}",
            "HUAFANG_S3_ACCESS_KEY": S3_ACCOUNT,
            "HUAFANG_S3_SECRET_KEY": self.secrets["s3"],
            "HUAFANG_S3_BUCKET": settings.s3_bucket,
        }


def home_path(settings: Settings) -> Path:
    return settings.home.expanduser().absolute()


def prepare_instance(home: Path, listen: str = LOOPBACK, device: str | None = None, workers: int = 1) -> Instance:
    """Read or create the instance and write it back; a port that is taken is replaced.

    Raises Invalid for an address of another machine, Unavailable for a home that cannot hold a farm.
    """
    make_home(home)
    check_room(home)
    check_address(listen)
    known = find_instance(home) or Instance(home)
    instance = replace(
        known,
        listen=listen,
        device=device,
        workers=workers,
        ports=choose_ports(listen, known.ports),
        secrets={name: secrets.token_hex(24) for name in SECRETS} | known.secrets,
    )
    written = asdict(instance)
    del written["home"]  # the folder may be moved
    write_private(home / "farm.json", json.dumps(written, indent=2))
    return instance


def find_instance(home: Path) -> Instance | None:
    try:
        return Instance(home=home, **json.loads((home / "farm.json").read_text()))
    except FileNotFoundError:
        return None


def make_home(home: Path) -> None:
    """Create the folders, private to this user. A home with foreign files keeps its mode: it may be shared."""
    try:
        is_new = not home.exists() or not any(home.iterdir())
        private_folder(home)
        if is_new:
            home.chmod(0o700)
        for name in ("run", "logs"):
            private_folder(home / name)
    except OSError as error:
        raise Unavailable(sentence("home_not_writable", home=home, reason=error.strerror)) from error


def check_room(home: Path) -> None:
    free_mb = shutil.disk_usage(home).free >> 20
    if free_mb < MIN_FREE_MB:
        raise Unavailable(sentence("disk_almost_full", free_mb=free_mb, home=home, needed_mb=MIN_FREE_MB))


def check_address(listen: str) -> None:
    if not can_bind(listen, 0):
        raise Invalid(sentence("listen_address_invalid", address=listen))


def choose_ports(listen: str, known: dict[str, int]) -> dict[str, int]:
    ports: dict[str, int] = {}
    for service in SERVICES:
        port = known.get(service, 0)
        while port in ports.values() or not (port and can_bind(listen, port)):
            port = FIRST_PORT + secrets.randbelow(PORT_COUNT)
        ports[service] = port
    return ports


def can_bind(listen: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((listen, port))
        except OSError:
            return False
        return True


def outgoing_address() -> str:
    """This machine's address on the default route. Sends nothing: connecting a UDP socket only picks the route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return LOOPBACK  # no network, so no machine could join
        address: str = probe.getsockname()[0]
        return address
