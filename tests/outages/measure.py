"""What the processes of a small farm hold before, during and after an outage.

before ──► 20 s in which pools may fill ──► no growth until the end ──► back to what it was before
"""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.outages.farm import PROCESSES, Outage, SmallFarm

SETTLES_S = 20.0  # of an outage: pools fill, what was in flight times out
BEFORE_S = 4.0
SAMPLE_S = 1.0
OPEN = ("01", "02", "08")  # states of /proc/net/tcp: established, being opened, closed by the other end only
TIME_WAIT = "06"


@dataclass(frozen=True)
class Held:
    """What one process holds at a moment."""

    descriptors: int  # but for the connections of users
    threads: int
    memory: int  # resident, MB
    connections: int  # to the servers
    time_wait: int  # connections to the servers that were closed within the last minute


NAMES = tuple(field.name for field in fields(Held))
# What it may hold more by chance: pools fill later, other requests are under way, garbage is not collected yet.
SLACK = Held(descriptors=16, threads=6, memory=8, connections=16, time_wait=40)


class End(NamedTuple):
    """One end of a TCP connection: ports, and state."""

    local: int
    remote: int
    state: str


class Story(NamedTuple):
    """One process and one outage: what was held, each a median of some samples."""

    before: Held
    settled: Held  # once the outage has lasted SETTLES_S
    most: Held  # of each number, from then on
    end: Held  # the last moments of the outage
    after: Held

    def growth(self) -> dict[str, int]:
        """By how much more than chance it grew while the outage went on, by name."""
        return self._excess(self.end, self.settled, NAMES)

    def remains(self) -> dict[str, int]:
        """By how much more than chance it holds more afterwards than before, by name."""
        return self._excess(self.after, self.before, [name for name in NAMES if name != "time_wait"])

    def _excess(self, later: Held, earlier: Held, names: Iterable[str]) -> dict[str, int]:
        more = {name: getattr(later, name) - getattr(earlier, name) for name in names}
        return {name: value for name, value in more.items() if value > getattr(SLACK, name)}


def observe(farm: SmallFarm, outage: Outage, seconds: float, recovery_s: float) -> dict[str, Story]:
    """Cause the outage for so long. By process. A process that ends on the way raises."""
    before = sample(farm, BEFORE_S)
    outage.begin(farm)
    try:
        sample(farm, min(SETTLES_S, seconds / 2))
        during = sample(farm, max(seconds - SETTLES_S, seconds / 2))
    finally:
        outage.end(farm)
    after = sample(farm, recovery_s)
    stories = {}
    for name in PROCESSES:
        held = during[name]
        some = max(3, len(held) // 8)
        most = Held(*(max(getattr(one, field) for one in held) for field in NAMES))
        stories[name] = Story(
            middle(before[name]), middle(held[:some]), most, middle(held[-some:]), middle(after[name][-5:])
        )
    return stories


def sample(farm: SmallFarm, seconds: float) -> dict[str, list[Held]]:
    held: dict[str, list[Held]] = {name: [] for name in PROCESSES}
    until = time.monotonic() + seconds
    while True:
        assert not farm.harms, farm.harms  # nothing that dies is counted as small
        ends = connection_ends()
        for name in PROCESSES:
            child = farm.children[name].process
            assert child, f"{name} was not started"
            held[name].append(hold(child.pid, farm.own_ports(name), farm.server_ports(name), ends))
        if time.monotonic() >= until:
            return held
        time.sleep(SAMPLE_S)


def hold(pid: int, own: set[int], servers: set[int], ends: list[End]) -> Held:
    """What a process holds that listens on its own ports and connects to those of the servers."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    users = sum(end.local in own and end.state in OPEN for end in ends)
    to_servers = Counter(end.state for end in ends if end.remote in servers)
    closed_by_servers = sum(end.local in servers and end.state == TIME_WAIT for end in ends)
    return Held(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())) - users,
        threads=int(status["Threads"]),
        memory=int(status["VmRSS"].split()[0]) // 1024,
        connections=sum(to_servers[state] for state in OPEN),
        time_wait=to_servers[TIME_WAIT] + closed_by_servers,
    )


def connection_ends() -> list[End]:
    """Of all TCP connections of this machine. One that is closed has one end left, in TIME_WAIT."""
    ends = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        ends.append(End(int(local.split(":")[1], 16), int(remote.split(":")[1], 16), state))
    return ends


def middle(held: Iterable[Held]) -> Held:
    held = list(held)
    return Held(*(round(median(getattr(one, name) for one in held)) for name in NAMES))
