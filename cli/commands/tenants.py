"""`huafang tenants`: create, list, show, set, suspend, resume, erase."""

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cli import sentence
from cli.client import Json, api_path
from cli.commands.rm import POLL_S, confirm
from cli.errors import INTERRUPTED, NOT_FOUND, PARTLY, Failure, program_name
from cli.options import Limit
from cli.shell import Group, Shell
from cli.terminal import Columns, Row
from cli.watch import show_progress
from common.enums import Tier

Function = TypeVar("Function", bound=Callable[..., Any])

ALL = "all"
FIRST_KEY = "admin"


def limits(tenant: Row) -> list[str]:
    return [f"{name}={value}" for name, value in tenant["limits"].items()]


def tiers(tenant: Row) -> str:
    return ", ".join(tenant["tiers"] or [ALL])


def state(tenant: Row) -> str:
    if since := tenant.get("erased_at"):  # an older API does not say it
        finished = tenant["erasure_finished_at"]
        return f"erased at {finished}" if finished else f"being erased since {since}"
    return f"suspended since {tenant['suspended_at']}" if tenant["suspended_at"] else "active"


ROW: Columns = {
    "id": lambda tenant: tenant["id"],
    "name": lambda tenant: tenant["name"],
    "state": state,
    "weight": lambda tenant: tenant["weight"],
    "tiers": tiers,
    "limits": limits,
    "keys": lambda tenant: tenant["keys"],
    "open images": lambda tenant: tenant["open_images"],
}
RECORD: Columns = {
    **ROW,
    "pictures kept": lambda tenant: days(tenant["keep_pictures_days"]),
    "jobs kept": lambda tenant: days(tenant["keep_rows_days"]),
    "created": lambda tenant: tenant["created_at"],
}


# The proof of an erasure: a line for each table, and one for the bucket.
PROOF: Columns = {
    "of the tenant": lambda line: line["what"],
    "left": lambda line: line["left"],
    "kept": lambda line: line["kept"],
    "what is kept": lambda line: line["reason"],
}


def days(count: int | None) -> str:
    return f"{count} days" if count else "for good"


def settings_options(command: Function) -> Function:
    """What an operator decides for a tenant."""
    for option in (
        click.option("--keep-rows", type=click.IntRange(0), help="Days after the end of a job; 0: for good."),
        click.option("--keep-pictures", type=click.IntRange(0), help="Days after the end of a job; 0: for good."),
        click.option("--limit", "limits", multiple=True, type=Limit(), help="Repeat it for more; NAME=: the farm's."),
        click.option(
            "--tier",
            "tiers",
            multiple=True,
            type=click.Choice([*(tier.value for tier in Tier), ALL]),
            help="It may use; repeat it for more.",
        ),
        click.option("--weight", type=click.FloatRange(0, min_open=True), help="Its share, beside the others'."),
    ):
        command = option(command)
    return command


def chosen(
    weight: float | None,
    tiers: tuple[str, ...],
    limits: tuple[tuple[str, int | None], ...],
    keep_pictures: int | None,
    keep_rows: int | None,
) -> Json:
    """The settings that were given, as the API takes them."""
    given: Json = {"weight": weight} if weight is not None else {}
    if tiers:
        given["tiers"] = None if ALL in tiers else list(tiers)
    if limits:
        given["limits"] = dict(limits)
    for name, kept in (("keep_pictures_days", keep_pictures), ("keep_rows_days", keep_rows)):
        if kept is not None:
            given[name] = kept or None
    return given


@click.group(cls=Group)
def tenants() -> None:
    """The tenants of the farm. Needs a key with the scope operator."""


@tenants.command()
@click.argument("name")
@settings_options
@click.option("--no-key", is_flag=True, help="Create no first key.")
@click.pass_obj
def create(shell: Shell, /, name: str, no_key: bool, **settings: Any) -> None:
    """Create a tenant, and its first key with the scope admin: its secret is shown this time only."""
    key = {} if no_key else {"key": FIRST_KEY}
    tenant = shell.client.post("/v1/tenants", {"name": name, **chosen(**settings), **key})
    if tenant["key"]:
        tenant["secret"] = tenant["key"]["secret"]
    shell.print_record(tenant, {**RECORD, "secret": lambda one: one.get("secret")}, name="name" if no_key else "secret")
    if not no_key:
        shell.print_message("Save the secret now: it is not shown again.")


@tenants.command()
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="The most tenants to list.")
@click.pass_obj
def ls(shell: Shell, limit: int) -> None:
    """List tenants, the newest first."""
    shell.print_rows(shell.client.pages("/v1/tenants", limit), ROW, name="name")


@tenants.command()
@click.argument("tenant", metavar="NAME")
@click.pass_obj
def show(shell: Shell, tenant: str) -> None:
    """Show a tenant, given by name or id."""
    shell.print_record(shell.client.get(api_path("tenants", find_tenant(shell, tenant))), RECORD, name="name")


@tenants.command("set")
@click.argument("tenant", metavar="NAME")
@click.option("--name", "new_name", help="Its new name.")
@settings_options
@click.pass_obj
def set_(shell: Shell, /, tenant: str, new_name: str | None, **settings: Any) -> None:
    """Change a tenant, given by name or id. What is left out stays."""
    name = {"name": new_name} if new_name else {}
    changed = shell.client.patch(api_path("tenants", find_tenant(shell, tenant)), {**name, **chosen(**settings)})
    shell.print_record(changed, RECORD, name="name")


@tenants.command()
@click.argument("tenant", metavar="NAME")
@click.pass_obj
def suspend(shell: Shell, tenant: str) -> None:
    """Suspend a tenant: its keys are refused, what waits is kept and not rendered."""
    shell.client.post(api_path("tenants", find_tenant(shell, tenant), "suspend"))
    shell.print_message(f"{tenant} is suspended.")


@tenants.command()
@click.argument("tenant", metavar="NAME")
@click.pass_obj
def resume(shell: Shell, tenant: str) -> None:
    """Resume a tenant: what waits is rendered."""
    shell.client.post(api_path("tenants", find_tenant(shell, tenant), "resume"))
    shell.print_message(f"{tenant} is resumed.")


@tenants.command()
@click.argument("tenant", metavar="NAME")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--wait", is_flag=True, help="Wait until nothing is left, and show what was counted then.")
@click.pass_obj
def erase(shell: Shell, tenant: str, yes: bool, wait: bool) -> None:
    """Erase a suspended tenant, for good: all but the totals of its usage and its tombstones."""
    tenant_id = find_tenant(shell, tenant)
    confirm(f"Erase {tenant} with all its jobs, pictures, files and keys, for good?", yes)
    erasure = shell.client.post(api_path("tenants", tenant_id, "erase"))
    if wait:
        erasure = follow(shell, tenant_id, erasure)
    if shell.output_format == "human":
        shell.print_rows(proof(erasure), PROOF)
    else:
        shell.print_record(erasure, {}, name="tenant_id")
    if not erasure["finished_at"]:
        shell.print_message(f"{tenant} ({tenant_id}) is being erased.")
    elif erasure["bucket"]["unnamed"]:
        keys = ", ".join(erasure["bucket"]["keys"])
        raise Failure(sentence("unnamed_objects", count=erasure["bucket"]["unnamed"], keys=keys), PARTLY)


def follow(shell: Shell, tenant_id: str, erasure: Json) -> Json:
    """The erasure when nothing is left. Ctrl-C ends the watch, not the erasure."""

    def describe(found: Json) -> str:
        left = found["left"]
        if not any(left.values()):
            return "nothing is left; the bucket is being listed"
        return f"being erased: {left['jobs']} jobs, {left['images']} images, {left['objects_to_delete']} files left"

    def bar(found: Json) -> Json:
        return {"description": describe(found)}

    try:
        with show_progress(shell, describe, bar, line_key=describe) as show:
            while not erasure["finished_at"]:
                show({"id": tenant_id, **erasure})
                time.sleep(POLL_S)
                erasure = shell.client.get(api_path("tenants", tenant_id, "erasure"))
    except KeyboardInterrupt:
        raise Failure(sentence("erasure_goes_on", program=program_name(), tenant=tenant_id), INTERRUPTED) from None
    return erasure


def proof(erasure: Json) -> list[Row]:
    """By table, how many rows are left and how many are kept; and the same of the bucket."""
    kept = {one["table"]: one for one in erasure["kept"]}
    nothing = {"rows": None, "reason": None}
    lines: list[Row] = [
        {
            "what": table,
            "left": erasure["left"].get(table, 0),
            "kept": kept.get(table, nothing)["rows"],
            "reason": kept.get(table, nothing)["reason"],
        }
        for table in dict.fromkeys([*erasure["left"], *kept])
    ]
    if bucket := erasure["bucket"]:
        reason = f"of {bucket['objects']} that were listed; the others are named by rows of other tenants"
        lines.append({"what": "objects in the bucket", "left": bucket["unnamed"], "kept": None, "reason": reason})
    return lines


def find_tenant(shell: Shell, tenant: str) -> str:
    """The id of a tenant, given by name or id. Raises Failure where there is none."""
    if found := shell.client.get("/v1/tenants", name=tenant)["items"]:
        return str(found[0]["id"])
    try:
        return str(uuid.UUID(tenant))
    except ValueError:
        raise Failure(sentence("tenant_unknown", tenant=tenant), NOT_FOUND) from None
