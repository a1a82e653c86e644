"""`huafang keys`: create, list, revoke API keys."""

import click

from cli.client import api_path
from cli.commands.tenants import find_tenant
from cli.options import Expiry
from cli.shell import Group, Shell
from cli.terminal import Columns
from common.enums import Scope

ROW: Columns = {
    "id": lambda key: key["id"],
    "name": lambda key: key["name"],
    "scopes": lambda key: ", ".join(key["scopes"]),
    "created": lambda key: key["created_at"],
    "expires": lambda key: key.get("expires_at"),
    "revoked": lambda key: key.get("revoked_at"),
}


@click.group(cls=Group)
def keys() -> None:
    """API keys of your tenant."""


@keys.command()
@click.option("--name", required=True, help="Its user or purpose.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=("jobs:read", "jobs:write"),
    show_default=True,
    help="A permission; repeat it for more.",
)
@click.option("--expires", type=Expiry(), help="When it expires.  [default: never]")
@click.option("--tenant", help="Of this tenant, not of yours: needs a key with the scope operator.")
@click.pass_obj
def create(shell: Shell, name: str, scopes: tuple[str, ...], expires: str | None, tenant: str | None) -> None:
    """Create a key and show its secret: the only time."""
    path = api_path("tenants", find_tenant(shell, tenant), "keys") if tenant else "/v1/keys"
    until = {"expires_at": expires} if expires else {}
    key = shell.client.post(path, {"name": name, "scopes": list(scopes), **until})
    shell.print_record(
        key,
        {
            "id": lambda key: key["id"],
            "name": lambda key: key["name"],
            "scopes": lambda key: ", ".join(key["scopes"]),
            "expires": lambda key: key.get("expires_at"),
            "secret": lambda key: key["secret"],
        },
        name="secret",
    )
    shell.print_message("Save the secret now: it is not shown again.")


@keys.command()
@click.pass_obj
def ls(shell: Shell) -> None:
    """List keys, without their secrets."""
    shell.print_rows(shell.client.get("/v1/keys")["items"], ROW)


@keys.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
def revoke(shell: Shell, key_id: str) -> None:
    """Revoke a key: requests with it are refused from now on."""
    shell.client.delete(api_path("keys", key_id))
    shell.print_message(f"{key_id} is revoked.")
