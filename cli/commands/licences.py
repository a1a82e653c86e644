"""`huafang models show | accept`: what the licence of a model says it must not be used for, and saying yes to it."""

import sys

import click

from cli.client import Json, path
from cli.local import called
from cli.shell import Columns, Command, Failure, Row, Shell


def licence(model: Row) -> str:
    return " ".join(filter(None, (model["licence"], model["licence_version"])))


def to_accept(model: Row) -> str:
    return "to be accepted" if model["restrictions"] and not model["licence_accepted_at"] else ""


RECORD: Columns = {
    "model": lambda model: model["name"],
    "description": lambda model: model["description"],
    "source": lambda model: model["source"],
    "licence": licence,
    "full text": lambda model: model["licence_url"],
    "accepted": lambda model: model["licence_accepted_at"] or ("not yet" if model["restrictions"] else "needs not be"),
    "not to be used": lambda model: "; ".join(model["restrictions"]),
}


@click.command(cls=Command)
@click.argument("name", metavar="MODEL")
@click.pass_obj
def show(shell: Shell, name: str) -> None:
    """Show a model, with what its licence says that it must not be used for."""
    shell.print_record(find(shell, name), RECORD, name="name")


@click.command(cls=Command)
@click.argument("name", metavar="MODEL")
@click.option("--yes", "is_agreed", is_flag=True, help="You have read it: accept it without being asked.")
@click.pass_obj
def accept(shell: Shell, name: str, is_agreed: bool) -> None:
    """Show the licence of a model and accept it for your tenant: once, and for all models under it."""
    model = find(shell, name)
    if model["restrictions"] and not model["licence_accepted_at"]:
        if not is_agreed:
            ask(model)
        model = shell.client.post(path("models", name, "licence"), {"version": model["licence_version"]})
    shell.print_record(model, RECORD, name="name")


def ask(model: Json) -> None:
    """Raises Failure unless a person says yes."""
    forbidden = "".join(f"  - {one}\n" for one in model["restrictions"])
    click.echo(
        f"{model['name']} is under the licence {licence(model)}. It must not be used\n{forbidden}"
        f"The full text: {model['licence_url']}",
        err=True,
    )
    if not sys.stdin.isatty():
        raise Failure(
            f"Nobody is there to be asked; if you accept it: {called()} models accept {model['name']} --yes", 2
        )
    if not click.confirm("Do you accept it?", err=True):
        raise Failure(f"It is not accepted: {model['name']} draws nothing for you.")


def find(shell: Shell, name: str) -> Json:
    for model in shell.client.get("/v1/models")["items"]:
        if model["name"] == name:
            return dict(model)
    raise Failure(f"There is no model {name}; see `{called()} models ls`.", 4)
