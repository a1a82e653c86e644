"""`huafang workers`: list, drain, resume."""

import click

from cli.client import path
from cli.shell import Columns, Group, Row, Shell


def serves(worker: Row) -> str:
    """A line for each model: whether it is in memory, and how long an image takes."""
    return "\n".join(model_line(worker, name) for name in worker["models"])


def model_line(worker: Row, name: str) -> str:
    resident = " resident" if name in worker["resident"] else ""
    seconds = worker["seconds_per_image"].get(name)
    return name + resident + (f" {seconds:.2f} s" if seconds else "")


def of_class(worker: Row) -> str:
    known = worker["class"]
    return " ".join(str(known[part]) for part in ("device", "name", "precision") if known.get(part))


ROW: Columns = {
    "id": lambda worker: worker["id"],
    "name": lambda worker: worker["name"],
    "state": lambda worker: worker["state"],
    "class": of_class,
    "models": serves,
    "why": lambda worker: "\n".join(filter(None, [worker["reason"], *worker["refusals"].values()])),
}


@click.group(cls=Group)
def workers() -> None:
    """The render workers of the farm."""


@workers.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List render workers: what they are, what they hold, how fast they are."""
    shell.print_rows(shell.client.get("/v1/workers")["items"], ROW)


@workers.command()
@click.argument("worker_id", metavar="ID")
@click.pass_obj
def drain(shell: Shell, worker_id: str) -> None:
    """Let a worker finish what it holds and claim nothing more."""
    shell.client.post(path("workers", worker_id, "drain"))
    shell.note(f"{worker_id} drains.")


@workers.command()
@click.argument("worker_id", metavar="ID")
@click.pass_obj
def resume(shell: Shell, worker_id: str) -> None:
    """Let a draining worker claim again."""
    shell.client.post(path("workers", worker_id, "resume"))
    shell.note(f"{worker_id} claims again.")
