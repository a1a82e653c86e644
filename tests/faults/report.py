"""What a storm has to say: violations, faults done and hit, recovery in lease times, and what it cost."""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from tests.faults.farm import Farm
from tests.faults.faults import Tally
from tests.faults.load import Witness
from tests.faults.promises import PROMISES, Findings

TAKEN_BACK = "lease of a killed worker taken back"
GOALS = {
    TAKEN_BACK: "2 leases",
    "redis_emptied": "1 lease",
    "redis_black_hole": "25 s",
    "postgres_restarted": "10 s",
    "s3_down": "10 s",
}


def describe(farm: Farm, witness: Witness, findings: Findings, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    broken = {promise: findings.broken.get(promise, []) for promise in PROMISES}
    never_hit = [name for name, tally in tallies.items() if not tally.hit]
    return {
        "ok": not any(broken.values()) and not never_hit,
        "jobs_answered_201": len(witness.jobs),
        "lease_s": farm.rhythm.lease_s,
        "promises": {promise: len(lines) for promise, lines in broken.items()},
        "examples": {promise: lines[:10] for promise, lines in broken.items() if lines},
        "faults": {name: {"injected": tally.injected, "hit": tally.hit} for name, tally in sorted(tallies.items())},
        "never_hit": never_hit,
        "recovery": recoveries(farm, tallies),
        **figures(farm),
        "failed_by_bad_luck": findings.unlucky,
        "requests": dict(witness.counts),
        "network": {name: dict(proxy.touched) for name, proxy in farm.network.proxies.items()},
        "exits": Counter(f"{harm.name.partition('-')[0]}: {harm.kind}" for harm in farm.harms),
        "logs": str(farm.home),
    }


def recoveries(farm: Farm, tallies: Mapping[str, Tally]) -> dict[str, dict[str, float]]:
    """From the end of a fault to the first image published after it, and from a death to the end of its leases."""
    report = {}
    for name, tally in tallies.items():
        first = [farm.query(FIRST_PUBLISH, healed)[0]["at"] for _, healed in tally.windows]
        seconds = [at - healed for at, (_, healed) in zip(first, tally.windows, strict=True) if at is not None]
        if seconds:
            report[name] = spread(seconds, farm.rhythm.lease_s)
    # While Postgres was away nobody could renew or rescue; its grace comes on top.
    grace = 2.5 * farm.rhythm.lease_s
    away = [window for name, tally in tallies.items() if name.startswith("postgres") for window in tally.windows]
    deaths = [harm for harm in farm.harms if harm.kind == "exit -9"]
    calm = [one for one in deaths if not any(began - grace < one.ended < ended + grace for began, ended in away)]
    lost = [row["seconds"] for one in calm for row in farm.query(LOST_BY, *([one.ended] * 3), one.name)]
    if lost:
        report[TAKEN_BACK] = spread(lost, farm.rhythm.lease_s)
    return report


def spread(seconds: Sequence[float], lease_s: float) -> dict[str, float]:
    usual, worst = median(seconds), max(seconds)
    return {
        "median_s": round(usual, 1),
        "worst_s": round(worst, 1),
        "median_leases": round(usual / lease_s, 1),
        "worst_leases": round(worst / lease_s, 1),
    }


def figures(farm: Farm) -> dict[str, Any]:
    """What it cost: leases by outcome, renders, and how many of those nobody saw."""
    leases = farm.query("SELECT outcome, count(*) AS n FROM leases GROUP BY 1 ORDER BY 1")
    jobs = farm.query("SELECT state, count(*) AS n FROM jobs GROUP BY 1 ORDER BY 1")
    (row,) = farm.query(RENDERS)
    wasted = row["started"] - row["visible"] - row["refused"] - row["unwanted"]
    return {
        "jobs": {row["state"]: row["n"] for row in jobs},
        "leases": {str(row["outcome"]): row["n"] for row in leases},
        "renders_started": row["started"],
        "images_visible": row["visible"],
        "renders_wasted": wasted,
        "wasted_percent": round(100 * wasted / max(row["started"], 1), 1),
    }


def say(report: Mapping[str, Any]) -> None:
    print(f"{report['command']}: {report['jobs_answered_201']} jobs, {report['total_s']} s; logs in {report['logs']}\n")
    for promise, sentence in PROMISES.items():
        print(f"{promise:>4} {report['promises'][promise]:>5} violations   {sentence}")
        for example in report["examples"].get(promise, []):
            print(f"           {example}")
    print(f"\n{'fault':<42} {'injected':>8} {'hit':>6}   first image after it, in leases: median, worst")
    for name, tally in report["faults"].items():
        print(f"{name:<42} {tally['injected']:>8} {tally['hit']:>6}   {said(report, name)}")
    print(f"{TAKEN_BACK:<57}   {said(report, TAKEN_BACK)}\n")
    print(
        f"renders: {report['renders_started']} started, {report['images_visible']} visible,"
        f" {report['renders_wasted']} in vain ({report['wasted_percent']} %)"
    )
    for name in ("jobs", "leases", "requests", "network", "exits", "failed_by_bad_luck"):
        print(f"{name}: {json.dumps(report[name], ensure_ascii=False)}")
    for line in [*report["troubles"], *(f"never hit: {name}" for name in report["never_hit"])]:
        print(line)
    print("every promise was kept" if report["ok"] else "NOT every promise was kept, or a fault hit nobody")


def print_markdown(report: Mapping[str, Any]) -> None:
    """The tables of docs/11-reliability.md."""
    print(f"`{report['command']}`\n")
    print("| promise | | violations |\n|---|---|---|")
    for promise, sentence in PROMISES.items():
        print(f"| {promise} | {sentence} | {report['promises'][promise]} |")
    print("\n| fault | done | hit | first image after it, median (worst) | goal |\n|---|---|---|---|---|")
    for name, tally in [*report["faults"].items(), (TAKEN_BACK, None)]:
        recovery = report["recovery"].get(name)
        seconds = f"{recovery['median_s']} s ({recovery['worst_s']} s)" if recovery else ""
        counts = f"{tally['injected']} | {tally['hit']}" if tally else " | "
        print(f"| {name.replace('_', ' ')} | {counts} | {seconds} | {GOALS.get(name, '')} |")
    print(
        f"\n{report['jobs_answered_201']} jobs, {report['images_visible']} images visible; {report['renders_started']}"
        f" renders started, {report['renders_wasted']} in vain ({report['wasted_percent']} %). Leases of"
        f" {report['lease_s']:g} s: {report['leases']}. Jobs: {report['jobs']}."
    )


def said(report: Mapping[str, Any], name: str) -> str:
    recovery = report["recovery"].get(name)
    goal = f" (goal: {GOALS[name]})" if name in GOALS else ""
    return f"{recovery['median_leases']:>5} {recovery['worst_leases']:>5}{goal}" if recovery else ""


FIRST_PUBLISH = """
    SELECT extract(epoch FROM min(at))::float AS at FROM storm_changes
    WHERE new_state = 'stored' AND at >= to_timestamp(%s)
"""

LOST_BY = """
    SELECT extract(epoch FROM ended_at)::float - %s AS seconds FROM leases JOIN workers ON workers.id = worker_id
    WHERE outcome = 'lost' AND claimed_at < to_timestamp(%s) AND ended_at > to_timestamp(%s) AND workers.name = %s
"""

RENDERS = """
    SELECT count(*) FILTER (WHERE old_state = 'queued' AND new_state = 'running') AS started,
           count(*) FILTER (WHERE new_state IN ('stored', 'flagged')) AS visible,
           count(*) FILTER (WHERE old_state = 'running' AND new_state = 'cancelled') AS unwanted,
           count(*) FILTER (WHERE new_state = 'failed' AND images.error_code <> 'worker_lost') AS refused
    FROM storm_changes LEFT JOIN images USING (id) WHERE noun = 'image'
"""


if __name__ == "__main__":  # python -m tests.faults.report < report.json
    print_markdown(json.load(sys.stdin))
