"""`huafang workers`: list, drain, resume."""

import click

from cli.client import path
from cli.shell import Columns, Failure, Group, Row, Shell


def serves(worker: Row) -> str:
    """A line for each model: whether it is in memory, how many images go together, and how long one takes."""
    return "\n".join(model_line(worker, name) for name in worker["models"])


def model_line(worker: Row, name: str) -> str:
    resident = " resident" if name in worker["resident"] else ""
    capacity, seconds = worker.get("capacity", {}).get(name), worker["seconds_per_image"].get(name)
    return name + resident + (f" ×{capacity}" if capacity else "") + (f" {seconds:.2f} s" if seconds else "")


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
@click.argument("worker", metavar="NAME")
@click.pass_obj
def drain(shell: Shell, worker: str) -> None:
    """Let a worker, named by its name or id, finish what it has in hand and claim nothing more."""
    shell.client.post(path("workers", find(shell, worker), "drain"))
    shell.note(f"{worker} drains.")


@workers.command()
@click.argument("worker", metavar="NAME")
@click.pass_obj
def resume(shell: Shell, worker: str) -> None:
    """Let a draining worker, named by its name or id, claim again."""
    shell.client.post(path("workers", find(shell, worker), "resume"))
    shell.note(f"{worker} claims again.")


def find(shell: Shell, worker: str) -> str:
    """The id of a live worker. Several of one name are told apart by their ids only."""
    alive = [known for known in shell.client.get("/v1/workers")["items"] if known["state"] != "stopped"]
    ids = [known["id"] for known in alive if worker in (known["id"], known["name"])]
    if not ids:
        raise Failure(f"There is no live worker {worker}.", 4)
    if len(ids) > 1:
        raise Failure(f"{len(ids)} workers are called {worker}; name one by its id: {', '.join(ids)}.", 2)
    return str(ids[0])
