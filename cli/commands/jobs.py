"""`huafang jobs`: list, show, watch, cancel, retry, delete."""

import click

from cli.client import Json, api_path
from cli.commands.rm import WAIT, for_each, remove
from cli.shell import Group, Shell
from cli.terminal import Columns, Row
from cli.watch import job_failure, watch_job
from common.enums import JobState, Tier

IDS = click.argument("ids", metavar="ID...", nargs=-1, required=True)


def stored(job: Row) -> str:
    return f"{sum(image['state'] == 'stored' for image in job['images'])}/{len(job['images'])}"


def prompt_start(job: Row) -> str:
    text = " ".join(job["recipe"]["prompt"].split())
    return text if len(text) <= 30 else text[:29] + "…"


def why(job: Row) -> str | None:
    """Why a job waits or failed."""
    reason = job.get("error") or (job.get("waiting_for") if job["state"] == "queued" else None)
    return reason["message"] if isinstance(reason, dict) else reason


def times(job: Row) -> str:
    named = {"waited": "wait_s", "rendered": "render_s", "stored": "store_s"}
    spent = {name: (job.get("timings") or {}).get(key) for name, key in named.items()}
    return ", ".join(f"{name} {value:.2f} s" for name, value in spent.items() if value is not None)


ROW: Columns = {
    "id": lambda job: job["id"],
    "state": lambda job: job["state"],
    "pictures": stored,
    "model": lambda job: job["recipe"]["model"],
    "prompt": prompt_start,
    "created": lambda job: job["created_at"],
}
RECORD: Columns = {
    "id": lambda job: job["id"],
    "state": lambda job: job["state"],
    "why": why,
    "prompt": lambda job: job["recipe"]["prompt"],
    "negative": lambda job: job["recipe"]["negative_prompt"],
    "model": lambda job: job["recipe"]["model"],
    "size": lambda job: f"{job['recipe']['width']}×{job['recipe']['height']}",
    "steps": lambda job: f"{job['recipe']['steps']} of {job['recipe']['scheduler']}",
    "guidance": lambda job: job["recipe"]["guidance"],
    "pictures": stored,
    "tenant": lambda job: job.get("tenant"),
    "batch": lambda job: job.get("batch_id"),
    "retry of": lambda job: job.get("parent_id"),
    "position": lambda job: job.get("position"),
    "created": lambda job: job["created_at"],
    "finished": lambda job: job.get("finished_at"),
    "times": times,
}
IMAGE: Columns = {
    "picture": lambda image: image["index"],
    "state": lambda image: image["state"],
    "attempts": lambda image: image["attempts"],
    "seed": lambda image: image["seed"],
    "sha256": lambda image: image.get("sha256"),
    "error": lambda image: (image.get("error") or {}).get("message"),
}


ALL_TENANTS = click.option("--all-tenants", is_flag=True, help="Of any tenant: needs a key with the scope operator.")


@click.group(cls=Group)
def jobs() -> None:
    """Jobs of your tenant."""


@jobs.command()
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only jobs in this state.")
@click.option("--model", help="Only jobs of this model.")
@click.option("--tier", type=click.Choice([tier.value for tier in Tier]), help="Only jobs of this tier.")
@click.option("--batch", help="Only jobs of this batch, the last prompt first.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The most jobs to list.")
@ALL_TENANTS
@click.pass_obj
def ls(shell: Shell, /, limit: int, all_tenants: bool, **filters: str | None) -> None:
    """List jobs, the newest first."""
    wanted = {name: value for name, value in filters.items() if value} | among(all_tenants)
    columns = {**ROW, "tenant": lambda job: job["tenant"]} if all_tenants else ROW
    shell.print_rows(shell.client.pages("/v1/jobs", limit, **wanted), columns)


@jobs.command()
@click.argument("job_id", metavar="ID")
@ALL_TENANTS
@click.pass_obj
def show(shell: Shell, job_id: str, all_tenants: bool) -> None:
    """Show a job and its pictures."""
    print_job(shell, shell.client.get(api_path("jobs", job_id), **among(all_tenants)))


@jobs.command("watch")
@click.argument("job_id", metavar="ID")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="The most seconds to wait.")
@click.pass_obj
def watch_(shell: Shell, job_id: str, timeout: float | None) -> None:
    """Watch a job until it ends."""
    job = watch_job(shell, job_id, timeout)
    print_job(shell, job)
    if failure := job_failure(job):
        raise failure


@jobs.command()
@IDS
@ALL_TENANTS
@click.pass_obj
def cancel(shell: Shell, ids: tuple[str, ...], all_tenants: bool) -> None:
    """Cancel jobs. A job that has ended does not change."""
    post_each(shell, ids, "cancel", "?all_tenants=true" if all_tenants else "")


@jobs.command()
@IDS
@click.pass_obj
def retry(shell: Shell, ids: tuple[str, ...]) -> None:
    """Submit the recipes of ended jobs again, as new jobs."""
    post_each(shell, ids, "retry")


def among(all_tenants: bool) -> dict[str, str]:
    """The query of a request for jobs of any tenant."""
    return {"all_tenants": "true"} if all_tenants else {}


def post_each(shell: Shell, ids: tuple[str, ...], verb: str, query: str = "") -> None:
    """Apply a verb to each job; a failure does not stop the others. Raises Failure where one failed."""
    done, failure = for_each(ids, lambda job_id: shell.client.post(api_path("jobs", job_id, verb) + query))
    if done:
        shell.print_rows(done, ROW)
    if failure:
        raise failure


@jobs.command()
@IDS
@WAIT
@click.pass_obj
def rm(shell: Shell, ids: tuple[str, ...], wait: bool) -> None:
    """Delete jobs with their pictures, for good. A job that has not ended is cancelled first."""
    remove(shell, "jobs", ids, wait)


def print_job(shell: Shell, job: Json) -> None:
    shell.print_record(job, RECORD)
    if shell.output_format == "human":
        shell.print_rows(job["images"], IMAGE)
