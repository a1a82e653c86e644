"""`huafang workers`: list, drain, resume."""

import click

from cli import sentence
from cli.client import api_path
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
    """Why it drains or has stopped, refuses models, and what is wrong with its devices."""
    errors = [error for device in worker.get("devices", []) for error in device["errors"]]
    return [reason for reason in (worker["reason"], *worker["refusals"].values(), *errors) if reason]


ROW: Columns = {
    "id": lambda worker: worker["id"],
    "name": lambda worker: worker["name"],
    "state": lambda worker: worker["state"],
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
    """List render workers: their class, models and speed."""
    shell.print_rows(shell.client.get("/v1/workers")["items"], ROW)


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
    """Resume a draining worker, given by name or id: it claims again."""
    shell.client.post(api_path("workers", find_worker(shell, worker), "resume"))
    shell.print_message(f"{worker} claims again.")


def find_worker(shell: Shell, worker: str) -> str:
    """The id of a live worker. Raises Failure for a name that none or several of them have."""
    alive = [known for known in shell.client.get("/v1/workers")["items"] if known["state"] != "stopped"]
    ids = [known["id"] for known in alive if worker in (known["id"], known["name"])]
    if not ids:
        raise Failure(sentence("worker_unknown", worker=worker), NOT_FOUND)
    if len(ids) > 1:
        raise Failure(sentence("worker_ambiguous", count=len(ids), worker=worker, ids=", ".join(ids)), USAGE)
    return str(ids[0])
