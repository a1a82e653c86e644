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

from common.queue.quarantines import RESTS
from tests.faults.farm import Farm, Rhythm, make_home, write_json
from tests.faults.faults import PROCESSES, SERVICES, Fault, Scene, Tally
from tests.faults.load import Load, Witness
from tests.faults.promises import judge
from tests.faults.report import describe, say
from worker.control.deleter import CLEAN_AFTER_LEASES

SABOTAGES = ("cancel", "deletion", "fence", "heartbeat", "keys", "order", "sweep", "usage")  # what `sabotaged` can do
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
        over, (services, processes) = time.monotonic() + self._seconds, self.lanes
        other = threading.Thread(target=self._lane, args=("processes", processes), name="processes", daemon=True)
        other.start()
        self._lane("services", services)
        other.join(self._seconds + EXTENSION_S + 60)
        time.sleep(max(0, over - time.monotonic()))  # there may be no faults at all

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
        tally.windows.append((began, time.time()))
        print(f"  {name}: {tally.hit}", file=sys.stderr, flush=True)

    def heal(self) -> None:
        self.farm.network.heal()
        for trap in self.farm.traps.glob("*"):
            if trap.is_file():
                trap.unlink()
        for child in self.farm.children.values():
            child.send(signal.SIGCONT)
            self.farm.sickness(child.name).unlink(missing_ok=True)

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
        return sorted(stuck)

    def wait_for_recovery(self) -> list[str]:
        """Until no worker is quarantined, or each has had the time for two trials. Which ones still are."""
        deadline = time.monotonic() + 2 * RESTS[-1] * self.farm.rhythm.trial_s + STUCK_S
        while (left := self.farm.query("SELECT name, code, reason FROM quarantines")) and time.monotonic() < deadline:
            time.sleep(0.3)
        return [f"{row['name']} is still quarantined: {row['code']}, {row['reason']}" for row in left]

    def wait_for_cleaning(self) -> None:
        """Until the sweep has deleted what dead leases and deletions left, or has had the time for it twice."""
        patience = 2 * CLEAN_AFTER_LEASES * self.farm.rhythm.lease_s + 10
        deadline = time.monotonic() + patience
        while self.farm.query(TO_CLEAN) and time.monotonic() < deadline:
            time.sleep(0.3)


STATE = """
    SELECT count(*) FILTER (WHERE finished_at IS NULL)
               + (SELECT count(*) FROM batches WHERE finished_at IS NULL) AS open,
           extract(epoch FROM now() - (SELECT max(at) FROM storm_changes))::float AS still FROM jobs
"""

IDLE_BESIDE_WORK = """
    SELECT DISTINCT workers.id::text AS worker, lanes.model FROM images
    JOIN lanes ON lanes.id = images.lane_id JOIN workers ON lanes.model = ANY(workers.models)
    WHERE images.state = 'queued' AND images.lease_id IS NULL AND images.not_before IS NULL AND NOT lanes.closed
        AND workers.state = 'ready' AND workers.seen_at > now() - interval '5 s'
        AND NOT EXISTS (SELECT FROM quarantines WHERE quarantines.name = workers.name)
        AND NOT EXISTS (SELECT FROM leases WHERE worker_id = workers.id AND ended_at IS NULL)
"""

TO_CLEAN = """
    SELECT id FROM leases WHERE needs_cleanup UNION SELECT id FROM tombstones WHERE finished_at IS NULL LIMIT 1
"""

OVERDUE = "SELECT id FROM leases WHERE ended_at IS NULL AND expires_at < now() - interval '10 s'"


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
        if not given.faults:
            counts = witness.counts
            storm.tallies["cancelled_at_random"] = Tally(counts["cancels"], counts["cancelled"])
        unanswered = load.finish(320)
        stuck = storm.wait_for_quiet()
        quarantined = storm.wait_for_recovery()
        storm.wait_for_cleaning()
        load.close()
        away = [
            window for name, tally in storm.tallies.items() if name.startswith("postgres") for window in tally.windows
        ]
        findings = judge(farm, witness, stuck, away)
        findings.add("P13", quarantined)
        findings.add("P1", [f"{unanswered} requests were never answered"] * bool(unanswered))
        times = {"storm_s": round(raged), "total_s": round(time.monotonic() - began)}
        report = {"command": command_of(given), **times, **describe(farm, witness, findings, storm.tallies)}
        report["troubles"] = storm.troubles
        write_json(home / "report.json", report)
        if not report["ok"]:
            farm.save_tables()
        return report
    finally:
        farm.stop()


def command_of(given: argparse.Namespace) -> str:
    command = f"python -m tests.faults.storm --jobs {given.jobs} --minutes {given.minutes:g} --seed {given.seed}"
    only = f" --faults {','.join(given.faults)}" if given.faults else ""
    return command + only + (f" --sabotage {given.sabotage}" if given.sabotage else "")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.storm", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument(
        "--faults", type=lambda names: names.split(","), default=(), help="only these, comma-separated, or `none`"
    )
    parser.add_argument("--sabotage", choices=SABOTAGES, help="break the farm first")
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
