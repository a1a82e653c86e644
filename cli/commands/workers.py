"""`huafang workers`: list, drain, resume (which lifts a quarantine too)."""

import click

from cli import sentence
from cli.client import Json, api_path
from cli.errors import NOT_FOUND, USAGE, Failure
from cli.shell import Group, Shell, format_bytes
from cli.terminal import Columns, Row


def serves(worker: Row) -> list[str]:
    """A line per model: whether it is resident, its batch size, and the seconds per image."""
    return [model_line(worker, name) for name in worker["models"]]


def model_line(worker: Row, name: str) -> str:
    resident = " resident" if name in worker["resident"] else ""
    batch_size, seconds = worker.get("capacity", {}).get(name), worker["seconds_per_image"].get(name)
    return name + resident + (f" ×{batch_size}" if batch_size else "") + (f" {seconds:.2f} s" if seconds else "")


def worker_class(worker: Row) -> str:
    known = worker["class"]
    return " ".join(str(known[part]) for part in ("device", "name", "precision") if known.get(part))


def devices(worker: Row) -> list[str]:
    """A line per device: its memory, load and temperature, as far as it tells."""
    return [device_line(device) for device in worker.get("devices", [])]


def device_line(device: Row) -> str:
    used, total = (format_bytes(device[name]) for name in ("memory_used", "memory_total"))
    facts = [
        f"{used} of {total}" if used else "",
        "" if device["utilisation"] is None else f"{device['utilisation']} %",
        "" if device["temperature_c"] is None else f"{device['temperature_c']} °C",
    ]
    return " ".join([device["name"], *filter(None, facts)])


def why(worker: Row) -> list[str]:
    """Why it is quarantined, drains or has stopped, refuses models, and what is wrong with its devices."""
    errors = [error for device in worker.get("devices", []) for error in device["errors"]]
    quarantine = quarantine_line(worker) if worker.get("quarantined_at") else None
    return [reason for reason in (quarantine, worker["reason"], *worker["refusals"].values(), *errors) if reason]


def quarantine_line(worker: Row) -> str:
    since, next_trial = worker["quarantined_at"], worker["next_trial_at"]
    return sentence("quarantined", since=since, reason=worker["quarantine_reason"], next_trial=next_trial)


def state(worker: Row) -> str:
    return f"{worker['state']}, quarantined" if worker.get("quarantined_at") else str(worker["state"])


ROW: Columns = {
    "id": lambda worker: worker["id"],
    "name": lambda worker: worker["name"],
    "state": state,
    "class": worker_class,
    "device": devices,
    "models": serves,
    "why": why,
}


@click.group(cls=Group)
def workers() -> None:
    """The render workers of the farm."""


@workers.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List render workers: their class, models and speed, and whether they are quarantined."""
    known = shell.client.get("/v1/workers")
    shell.print_rows(known["items"], ROW)
    listed = {worker["name"] for worker in known["items"]}
    for gone in (one for one in known.get("quarantines", []) if one["name"] not in listed):
        line = {**gone, "quarantine_reason": gone["reason"]}
        shell.print_message(sentence("quarantined_gone", worker=gone["name"], quarantine=quarantine_line(line)))


@workers.command()
@click.argument("worker", metavar="NAME")
@click.pass_obj
def drain(shell: Shell, worker: str) -> None:
    """Drain a worker, given by name or id: it finishes what it has claimed and claims nothing more."""
    shell.client.post(api_path("workers", find_worker(shell, worker), "drain"))
    shell.print_message(f"{worker} drains.")


@workers.command()
@click.argument("worker", metavar="NAME")
@click.pass_obj
def resume(shell: Shell, worker: str) -> None:
    """Resume a worker that drains or is quarantined, given by name or id: it claims again.

    A name ends its quarantine also where no such worker runs now.
    """
    known = shell.client.get("/v1/workers")
    found = [one for one in known["items"] if one["state"] != "stopped" and worker in (one["id"], one["name"])]
    if worker in [one["name"] for one in known.get("quarantines", [])]:
        shell.client.delete(api_path("quarantines", worker))
        found = [one for one in found if one["state"] == "draining"]
        if not found:
            return shell.print_message(sentence("quarantine_lifted", worker=worker))
    shell.client.post(api_path("workers", the_worker(found, worker), "resume"))
    shell.print_message(f"{worker} claims again.")


def find_worker(shell: Shell, worker: str) -> str:
    """The id of a live worker. Raises Failure for a name that none or several of them have."""
    known = shell.client.get("/v1/workers")["items"]
    return the_worker(
        [one for one in known if one["state"] != "stopped" and worker in (one["id"], one["name"])], worker
    )


def the_worker(found: list[Json], worker: str) -> str:
    ids = [str(one["id"]) for one in found]
    if not ids:
        raise Failure(sentence("worker_unknown", worker=worker), NOT_FOUND)
    if len(ids) > 1:
        raise Failure(sentence("worker_ambiguous", count=len(ids), worker=worker, ids=", ".join(ids)), USAGE)
    return ids[0]
