"""The storm: `python -m tests.faults.storm --jobs N --minutes M --seed S [--json]`.

    start a farm ──► load and faults, side by side ──► heal ──► quiet ──► judge

Exit code 1 on any broken promise, and on a fault that hit nobody: a storm that met no one proves nothing. The seed
decides the order of faults and jobs, not when processes run: two storms of one seed are alike, not equal.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.faults.farm import Farm, Rhythm, make_home, write_json
from tests.faults.faults import PROCESSES, SERVICES, Fault, Scene, Tally
from tests.faults.load import Load, Witness
from tests.faults.promises import PROMISES, Findings, figures, judge

GAP_S = (0.3, 2.0)  # between two faults of a kind
EXTENSION_S = 90.0  # for faults that have not hit yet
STILL_S = 45.0  # without any change, a farm with open jobs is stuck
QUIET_S = 900.0
STUCK_S = 10.0


class Storm:
    def __init__(self, farm: Farm, load: Load, seed: int, seconds: float, only: Iterable[str] = ()) -> None:
        self.farm = farm
        self.load = load
        chosen = set(only)
        self.lanes = [
            {name: fault for name, fault in lane.items() if not chosen or name in chosen}
            for lane in (SERVICES, PROCESSES)
        ]
        self.tallies = {name: Tally() for lane in self.lanes for name in lane}
        self.troubles: list[str] = []
        self._seed = seed
        self._seconds = seconds

    def rage(self) -> None:
        """Services in this thread, for they die with the one that started them; processes in another."""
        services, processes = self.lanes
        other = threading.Thread(target=self._lane, args=("processes", processes), name="processes", daemon=True)
        other.start()
        self._lane("services", services)
        other.join(self._seconds + EXTENSION_S + 60)

    def _lane(self, name: str, lane: Mapping[str, Fault]) -> None:
        scene = Scene(self.farm, self.load, random.Random(f"{self._seed}:{name}"))
        over, todo = time.monotonic() + self._seconds, list[str]()
        while lane:
            now, missed = time.monotonic(), [name for name in lane if not self.tallies[name].hit]
            if now > over and (not missed or now > over + EXTENSION_S):
                return
            if now > over:
                todo = [name for name in todo if name in missed]
            if not todo:
                todo = scene.random.sample(list(lane), len(lane)) if now < over else missed
            self._inject(todo.pop(), lane, scene)
            time.sleep(scene.random.uniform(*GAP_S))

    def _inject(self, name: str, lane: Mapping[str, Fault], scene: Scene) -> None:
        tally, began = self.tallies[name], time.time()
        tally.injected += 1
        try:
            tally.hit += lane[name](scene)
        except Exception as error:
            self.troubles.append(f"{name}: {type(error).__name__}: {error}")
        tally.healed.append(time.time())
        tally.windows.append((began, time.time()))
        print(f"  {name}: {tally.hit}", file=sys.stderr, flush=True)

    def heal(self) -> None:
        self.farm.network.heal()
        for trap in self.farm.traps.glob("*"):
            if trap.is_file():
                trap.unlink()
        for child in self.farm.children.values():
            child.send(signal.SIGCONT)

    def wait_for_quiet(self) -> list[str]:
        """Until every job has ended, or nothing moves any more. What was stuck meanwhile."""
        deadline, idle_since, stuck = time.monotonic() + QUIET_S, dict[tuple[str, str], float](), set[str]()
        grace_over = time.monotonic() + 1.5 * self.farm.rhythm.lease_s + STUCK_S
        while time.monotonic() < deadline:
            (state,) = self.farm.query(STATE)
            if not state["open"] or (state["still"] or 0) > STILL_S:
                break
            now = time.monotonic()
            pairs = {(row["worker"], row["model"]) for row in self.farm.query(IDLE_BESIDE_WORK)}
            idle_since = {pair: idle_since.get(pair, now) for pair in pairs}
            if now > grace_over:
                stuck |= {f"{w} idle beside work for {m}" for (w, m), t in idle_since.items() if now - t > STUCK_S}
                stuck |= {f"lease {row['id']} is past its end" for row in self.farm.query(OVERDUE)}
            time.sleep(0.3)
        time.sleep(2 * self.farm.rhythm.beat_s)  # what publishes last also cleans up
        return sorted(stuck)

    # Figures

    def recoveries(self) -> dict[str, dict[str, float]]:
        """Seconds, and leases: from the end of a fault to the first image published after it, at worst."""
        report = {}
        for name, tally in self.tallies.items():
            seconds = [s for healed in tally.healed if (s := self._first_publish(healed)) is not None]
            if seconds:
                report[name] = self._worst(seconds)
        lost = [
            row["seconds"]
            for harm in self.farm.harms
            for row in self.farm.query(LOST_BY, *([harm.began] * 3), harm.name)
        ]
        if lost:
            report["lease of a dead or frozen worker taken back"] = self._worst(lost)
        return report

    def _worst(self, seconds: list[float]) -> dict[str, float]:
        return {"seconds": round(max(seconds), 1), "leases": round(max(seconds) / self.farm.rhythm.lease_s, 1)}

    def _first_publish(self, since: float) -> float | None:
        (row,) = self.farm.query(FIRST_PUBLISH, since)
        return None if row["at"] is None else float(row["at"]) - since


STATE = """
    SELECT count(*) FILTER (WHERE finished_at IS NULL) AS open,
           extract(epoch FROM now() - (SELECT max(at) FROM storm_changes))::float AS still FROM jobs
"""

IDLE_BESIDE_WORK = """
    SELECT DISTINCT workers.id::text AS worker, lanes.model FROM images
    JOIN lanes ON lanes.id = images.lane_id JOIN workers ON lanes.model = ANY(workers.models)
    WHERE images.state = 'queued' AND images.lease_id IS NULL AND images.not_before IS NULL
        AND workers.state = 'ready' AND workers.seen_at > now() - interval '5 s'
        AND NOT EXISTS (SELECT FROM leases WHERE worker_id = workers.id AND ended_at IS NULL)
"""

OVERDUE = "SELECT id FROM leases WHERE ended_at IS NULL AND expires_at < now() - interval '10 s'"

FIRST_PUBLISH = """
    SELECT extract(epoch FROM min(at))::float AS at FROM storm_changes
    WHERE new_state = 'stored' AND at >= to_timestamp(%s)
"""

LOST_BY = """
    SELECT extract(epoch FROM ended_at)::float - %s AS seconds FROM leases JOIN workers ON workers.id = worker_id
    WHERE outcome = 'lost' AND claimed_at < to_timestamp(%s) AND ended_at > to_timestamp(%s) AND workers.name = %s
"""


def run(given: argparse.Namespace) -> dict[str, Any]:
    home, seconds = make_home(given.home), 60 * given.minutes
    farm = Farm(home, Rhythm(), given.sabotage)
    try:
        farm.start()
        witness = Witness()
        load = Load(farm, witness, given.jobs, seconds, given.seed)
        storm = Storm(farm, load, given.seed, seconds, given.faults)
        began = time.monotonic()
        load.start()
        storm.rage()
        load.stop_submitting()
        storm.heal()
        raged = time.monotonic() - began
        unanswered = load.finish(320)
        stuck = storm.wait_for_quiet()
        load.close()
        away = [
            window for name, tally in storm.tallies.items() if name.startswith("postgres") for window in tally.windows
        ]
        findings = judge(farm, witness, stuck, away)
        findings.note("P1", [f"{unanswered} requests were never answered"] * bool(unanswered))
        report = describe(given, storm, findings, {"storm_s": round(raged), "total_s": round(time.monotonic() - began)})
        write_json(home / "report.json", report)
        return report
    finally:
        farm.stop()


def describe(given: argparse.Namespace, storm: Storm, findings: Findings, times: dict[str, int]) -> dict[str, Any]:
    broken = {promise: findings.broken.get(promise, []) for promise in PROMISES}
    never_hit = [name for name, tally in storm.tallies.items() if not tally.hit]
    witness = storm.load.witness
    return {
        "command": f"python -m tests.faults.storm --jobs {given.jobs} --minutes {given.minutes:g} --seed {given.seed}",
        **times,
        "lease_s": storm.farm.rhythm.lease_s,
        "promises": {promise: len(lines) for promise, lines in broken.items()},
        "examples": {promise: lines[:10] for promise, lines in broken.items() if lines},
        "faults": {name: {"injected": t.injected, "hit": t.hit} for name, t in sorted(storm.tallies.items())},
        "never_hit": never_hit,
        "recovery": storm.recoveries(),
        **figures(storm.farm),
        "jobs_answered_201": len(witness.jobs),
        "requests": dict(witness.counts),
        "network": {name: dict(proxy.touched) for name, proxy in storm.farm.network.proxies.items()},
        "restarts": {name: child.starts - 1 for name, child in storm.farm.children.items()},
        "orphan_objects": findings.orphans,
        "failed_by_bad_luck": findings.unlucky,
        "troubles": storm.troubles,
        "logs": str(storm.farm.home),
        "ok": not any(broken.values()) and not never_hit,
    }


def say(report: dict[str, Any]) -> None:
    print(f"{report['command']}: {report['jobs_answered_201']} jobs, {report['total_s']} s; logs in {report['logs']}")
    for promise, sentence in PROMISES.items():
        print(f"{promise:>4} {report['promises'][promise]:>5} violations   {sentence}")
        for example in report["examples"].get(promise, []):
            print(f"           {example}")
    print(f"\n{'fault':<42} {'injected':>8} {'hit':>6}   until the first image after it, at worst")
    for name, tally in report["faults"].items():
        recovery = report["recovery"].get(name)
        worst = f"{recovery['seconds']} s = {recovery['leases']} leases" if recovery else ""
        print(f"{name:<42} {tally['injected']:>8} {tally['hit']:>6}   {worst}")
    for name in ("jobs", "leases", "requests", "restarts", "network", "recovery"):
        if name == "recovery":
            continue
        print(f"{name}: {json.dumps(report[name], ensure_ascii=False)}")
    print(
        f"renders: {report['renders_started']} started, {report['images_visible']} visible,"
        f" {report['renders_wasted']} wasted ({report['wasted_percent']} %)"
    )
    print(f"orphan objects: {report['orphan_objects']}; failed by bad luck: {report['failed_by_bad_luck']}")
    for line in [*report["troubles"], *(f"never hit: {name}" for name in report["never_hit"])]:
        print(line)
    print("every promise was kept" if report["ok"] else "NOT every promise was kept, or a fault hit nobody")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.storm", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--faults", type=lambda names: names.split(","), default=(), help="only these, comma-separated")
    parser.add_argument("--sabotage", choices=("fence", "sweep", "heartbeat", "order"), help="break the farm first")
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()), help="where the farm and its logs go")
    given = parser.parse_args(arguments)
    report = run(given)
    if given.json:
        print(json.dumps(report, indent=2, default=str, ensure_ascii=False))
    else:
        say(report)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
