"""Every fault, a function each: it harms the farm, heals it, and says how many it hit, by asking.

`PROCESSES` are done to our own processes, `SERVICES` to Postgres, Redis, S3 and the network before them. One of each
kind can be at work at the same time.
"""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg

from tests.faults.farm import CONNECTIONS, OWN_STORE, OWN_STORE_WORKER, Farm
from tests.faults.load import Load

NOTICE_S = 6.0  # how long a trap waits for somebody to step in


@dataclass
class Scene:
    """What a fault works with: the farm, its users, and chance."""

    farm: Farm
    load: Load
    random: random.Random

    @property
    def lease_s(self) -> float:
        return self.farm.rhythm.lease_s

    def until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def busy(self) -> str:
        """The name of a worker that holds a started lease; if none does in time, of any."""
        self.until(self.farm.busy_workers, NOTICE_S)
        names = self.farm.busy_workers() or [name for name in self.farm.children if name.startswith("stub")]
        return self.random.choice(names)

    def errors(self) -> int:
        """Requests that were not answered, or with 503."""
        counts = self.load.witness.counts
        return sum(count for name, count in counts.items() if name.endswith(("Error", "Timeout", "503")))


Fault = Callable[[Scene], int]


@dataclass
class Tally:
    """How often a fault was done, how many it hit, and when."""

    injected: int = 0
    hit: int = 0
    windows: list[tuple[float, float]] = field(default_factory=list)  # from when to when


PROCESSES: dict[str, Fault] = {}
SERVICES: dict[str, Fault] = {}


def process(fault: Fault) -> Fault:
    PROCESSES[fault.__name__] = fault
    return fault


def service(fault: Fault) -> Fault:
    SERVICES[fault.__name__] = fault
    return fault


# Our own processes


@process
def worker_killed(scene: Scene) -> int:
    name = scene.busy()
    scene.farm.children[name].send(signal.SIGKILL)
    return len(open_leases(scene.farm, name))


@process
def worker_frozen(scene: Scene) -> int:
    return freeze(scene, scene.busy(), scene.random.uniform(1.7, 2.5) * scene.lease_s)


@process
def worker_terminated(scene: Scene) -> int:
    farm, name = scene.farm, scene.busy()
    running = farm.children[name].process
    farm.children[name].send(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        return int(running.wait(farm.rhythm.drain_s + 8) == 0)
    farm.children[name].send(signal.SIGKILL)
    return 0


@process
def control_killed(scene: Scene) -> int:
    return int(scene.farm.children[f"control-{scene.random.randint(1, 2)}"].send(signal.SIGKILL))


@process
def api_killed(scene: Scene) -> int:
    before = scene.errors()
    scene.farm.children[f"api-{scene.random.randint(1, 2)}"].send(signal.SIGKILL)
    scene.until(lambda: scene.errors() > before, NOTICE_S)
    return scene.errors() - before


@process
def frozen_between_store_and_publish(scene: Scene) -> int:
    """Revived while another lease renders the same images: what the fence is for."""
    farm = scene.farm
    name = spring(scene, "freeze_stored")
    if name is None:
        return 0
    began = time.time()
    is_lost = scene.until(lambda: farm.query(RENDERED_AGAIN, name), 4 * scene.lease_s)
    farm.children[name].send(signal.SIGCONT)
    farm.harm(name, "frozen", began, time.time())
    return int(is_lost)


@process
def clock_shifted(scene: Scene) -> int:
    """An hour ahead, until the worker logs it."""
    farm, name = scene.farm, scene.busy()
    flag, began = farm.traps / f"clock.{name}", time.time()
    before = farm.logged(name, "clock_skew")
    flag.touch()
    is_logged = scene.until(lambda: farm.logged(name, "clock_skew") > before, 4 * scene.lease_s)
    flag.unlink()
    farm.harm(name, "clock", began, time.time())
    return int(is_logged)


@process
def worker_sick(scene: Scene) -> int:
    """Its device fails at every call until it is quarantined; then it is well, and comes back by itself."""
    farm = scene.farm
    scene.until(farm.busy_stubs, NOTICE_S)
    name = scene.random.choice(farm.busy_stubs() or [name for name in farm.children if name.startswith("stub")])
    farm.sickness(name).write_text("1")
    is_quarantined = scene.until(lambda: farm.query(QUARANTINED, name, "trial_failed"), NOTICE_S)
    farm.sickness(name).unlink()
    return int(is_quarantined)


@process
def poison(scene: Scene) -> int:
    before = len(scene.farm.sprung("poisoned by *"))
    scene.load.do(scene.load.poison(), 120)
    scene.until(lambda: len(scene.farm.sprung("poisoned by *")) > before, NOTICE_S)
    return len(scene.farm.sprung("poisoned by *")) - before


@process
def out_of_memory(scene: Scene) -> int:
    scene.load.do(scene.load.out_of_memory(), 120)
    return int(spring(scene, "out_of_memory") is not None)


@process
def fifty_duplicates(scene: Scene) -> int:
    return scene.load.do(scene.load.duplicates(50), 120)


@process
def cancelled_while_running(scene: Scene) -> int:
    load = scene.load
    body = load.recipe(model="zh-v0", steps=150, count=4, tier="interactive")
    job = load.do(load.submit(body, "红", "cancelled", f"cancel-{time.monotonic_ns()}"), 120)
    if job is None:
        return 0
    running = "SELECT id FROM images WHERE job_id = %s AND state = 'running'"
    scene.until(lambda: scene.farm.query(running, job["id"]), NOTICE_S)
    return int(load.do(load.cancel(job["id"], "红"), 120))


@process
def api_killed_while_cancelling(scene: Scene) -> int:
    """Before its COMMIT; the user, unanswered, cancels again."""
    farm, before = scene.farm, len(scene.farm.sprung("die_cancelling"))
    farm.set_trap("die_cancelling")
    cancelled_while_running(scene)
    farm.unset_trap("die_cancelling")
    return len(farm.sprung("die_cancelling")) - before


def at_the_point(trap: str) -> Fault:
    return lambda scene: int(spring(scene, trap) is not None)


PROCESSES |= {
    "api_killed_after_commit_before_message": at_the_point("die_committed"),
    "worker_killed_before_its_claim_commits": at_the_point("die_claiming"),
    "worker_killed_between_claim_and_start": at_the_point("die_claimed"),
    "worker_killed_while_rendering": at_the_point("die_rendering"),
    "worker_killed_in_mid_upload": at_the_point("die_uploading"),
    "worker_killed_between_store_and_publish": at_the_point("die_stored"),
    "worker_killed_before_its_publish_commits": at_the_point("die_publishing"),
    "worker_killed_after_its_publish": at_the_point("die_published"),
    "control_killed_before_its_rescue_commits": at_the_point("die_rescuing"),
}


def spring(scene: Scene, trap: str) -> str | None:
    """Set a trap and wait: who stepped in."""
    before = len(scene.farm.sprung(trap))
    scene.farm.set_trap(trap)
    scene.until(lambda: len(scene.farm.sprung(trap)) > before, NOTICE_S)
    scene.farm.unset_trap(trap)
    caught = sorted((scene.farm.traps / "sprung").glob(f"{trap}.*"), key=lambda path: path.suffix)
    return caught[-1].name.split(".")[1] if len(caught) > before else None


def freeze(scene: Scene, name: str, seconds: float) -> int:
    """Stop a process without its knowledge; how many leases it lost meanwhile."""
    farm, began = scene.farm, time.time()
    farm.children[name].send(signal.SIGSTOP)
    time.sleep(seconds)
    farm.children[name].send(signal.SIGCONT)
    farm.harm(name, "frozen", began, time.time())
    lost = "SELECT leases.id FROM leases JOIN workers ON workers.id = worker_id WHERE workers.name = %s"
    return len(farm.query(f"{lost} AND outcome = 'lost' AND ended_at > to_timestamp(%s)", name, began))


def open_leases(farm: Farm, name: str) -> list[dict[str, object]]:
    return farm.query(
        "SELECT leases.id FROM leases JOIN workers ON workers.id = worker_id"
        " WHERE workers.name = %s AND ended_at IS NULL AND expires_at > now()",
        name,
    )


RENDERED_AGAIN = """
    SELECT images.id FROM leases JOIN workers ON workers.id = worker_id JOIN images ON images.id = ANY(image_ids)
    WHERE workers.name = %s AND outcome = 'lost' AND images.state = 'running' AND images.lease_id <> leases.id
"""


# Why a worker is quarantined, by its name and the code of the reason.
QUARANTINED = "SELECT name FROM quarantines WHERE name = %s AND code = %s"


# Redis


@service
def redis_emptied(scene: Scene) -> int:
    with scene.farm.redis() as client:
        keys = int(client.dbsize())
        client.flushall()
    return keys


@service
def redis_killed(scene: Scene) -> int:
    connections = scene.farm.network["valkey"].open
    scene.farm.restart("valkey", down_s=scene.random.uniform(0, 3))
    return connections


@service
def redis_full(scene: Scene) -> int:
    """And every connection begins again, which must not need memory either."""
    with scene.farm.redis() as client:
        client.config_resetstat()
        client.config_set("maxmemory", 1)
        scene.farm.network["valkey"].reset_all()
        time.sleep(scene.random.uniform(4, 8))
        client.config_set("maxmemory", 0)
        return int(client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


@service
def redis_black_hole(scene: Scene) -> int:
    return weather(scene, "valkey", scene.random.uniform(5, 10), "swallowed", black_hole=True)


@service
def redis_reset(scene: Scene) -> int:
    return scene.farm.network["valkey"].reset_all()


# Postgres


@service
def postgres_restarted(scene: Scene) -> int:
    connections = scene.farm.network["postgres"].open
    scene.farm.restart("postgres", down_s=scene.random.uniform(0, 2))
    return connections


@service
def postgres_backends_killed(scene: Scene) -> int:
    killed = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'huafang'"
    return len(scene.farm.query(killed))


@service
def postgres_connections_used_up(scene: Scene) -> int:
    farm, held = scene.farm, []
    try:
        for _ in range(2):  # what the farm loses is taken too
            with suppress(psycopg.OperationalError):
                for _ in range(CONNECTIONS):
                    held.append(psycopg.connect(farm.database_url, connect_timeout=5))
            postgres_backends_killed(scene)
        before = farm.said("postgres", "too many clients")
        time.sleep(4)
        return farm.said("postgres", "too many clients") - before
    finally:
        for connection in held:
            connection.close()


@service
def postgres_commit_unanswered(scene: Scene) -> int:
    proxy = scene.farm.network["postgres"]
    before = proxy.touched["commits_cut"]
    proxy.become(cut_commits=scene.random.randint(3, 8))
    scene.until(lambda: not proxy.weather.cut_commits, NOTICE_S)
    proxy.become()
    return proxy.touched["commits_cut"] - before


@service
def postgres_cannot_serialize(scene: Scene) -> int:
    """Stricter isolation for a while: who comes second to a row is told to try again."""
    farm = scene.farm
    before = farm.said("postgres", "could not serialize")
    command(farm, "ALTER SYSTEM SET default_transaction_isolation = 'repeatable read'")
    command(farm, "SELECT pg_reload_conf()")
    scene.until(lambda: farm.said("postgres", "could not serialize") > before + 2, NOTICE_S)
    command(farm, "ALTER SYSTEM RESET default_transaction_isolation")
    command(farm, "SELECT pg_reload_conf()")
    return farm.said("postgres", "could not serialize") - before


@service
def postgres_black_hole(scene: Scene) -> int:
    return weather(scene, "postgres", scene.random.uniform(1, 2) * scene.lease_s, "swallowed", black_hole=True)


@service
def postgres_slow(scene: Scene) -> int:
    return weather(scene, "postgres", 4, "delayed", delay_s=scene.random.uniform(0.05, 0.2))


@service
def postgres_cut(scene: Scene) -> int:
    return weather(scene, "postgres", 4, "cut_down", cut_down=scene.random.randint(50, 4000))


@service
def postgres_reset(scene: Scene) -> int:
    return scene.farm.network["postgres"].reset_all()


@service
def tenants_locked(scene: Scene) -> int:
    """By an idle transaction: how many claims did not wait for it."""
    farm = scene.farm
    with psycopg.connect(farm.database_url, connect_timeout=5) as connection:
        connection.execute("SELECT id FROM tenants FOR NO KEY UPDATE")
        began = connection.execute("SELECT clock_timestamp() AS now").fetchall()[0][0]
        time.sleep(2)
        claimed = "SELECT id FROM leases WHERE claimed_at > %s"
        scene.until(lambda: farm.query(claimed, began), NOTICE_S)
        return len(farm.query(claimed, began))


# S3


@service
def s3_away_for_one(scene: Scene) -> int:
    """Until it is quarantined, and what it holds is stored by others."""
    farm, proxy = scene.farm, scene.farm.network[OWN_STORE]
    began = time.time()
    proxy.become(refuse=True)
    proxy.reset_all()
    is_quarantined = scene.until(
        lambda: farm.query(QUARANTINED, OWN_STORE_WORKER, "cannot_store"), 3 * farm.rhythm.lease_s
    )
    proxy.become()
    farm.harm(OWN_STORE_WORKER, "store away", began, time.time())
    return int(is_quarantined)


@service
def s3_down(scene: Scene) -> int:
    before = scene.farm.network["s3"].touched["refused"]
    scene.farm.restart("s3", down_s=scene.random.uniform(2, 5))
    return scene.farm.network["s3"].touched["refused"] - before


@service
def s3_slow(scene: Scene) -> int:
    return weather(scene, "s3", 4, "delayed", delay_s=scene.random.uniform(0.2, 1))


@service
def s3_errors(scene: Scene) -> int:
    return weather(scene, "s3", 4, "answered_500", errors=True)


@service
def s3_partial_upload(scene: Scene) -> int:
    return weather(scene, "s3", 4, "cut_up", cut_up=scene.random.randint(1500, 8000))


@service
def s3_black_hole(scene: Scene) -> int:
    return weather(scene, "s3", scene.random.uniform(1, 2) * scene.lease_s, "swallowed", black_hole=True)


def weather(scene: Scene, name: str, seconds: float, touched: str, **bad: object) -> int:
    """Bad weather before one server for a while; how often it was felt."""
    proxy = scene.farm.network[name]
    before = proxy.touched[touched]
    proxy.become(**bad)
    time.sleep(seconds)
    scene.until(lambda: proxy.touched[touched] > before, NOTICE_S)
    proxy.become()
    return proxy.touched[touched] - before


def command(farm: Farm, statement: str) -> None:
    with psycopg.connect(farm.database_url, autocommit=True, connect_timeout=5) as connection:
        connection.execute(statement.encode())
