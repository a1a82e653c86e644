"""`huafang demo`: start the local farm, render a few prompts, and print what to try next.

    start the farm ──► wait for a worker ──► submit the prompts ──► wait ──► save, and compare sha256s ──► print

The farm stays up. A second run uses it and renders the same pictures again, as new jobs.
"""

import hashlib
import shlex
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cli import sentence
from cli.client import Json
from cli.commands.farm import start
from cli.commands.generate import make_folder, save
from cli.errors import TIMED_OUT, Failure, program_name
from cli.local import key_file, read_key
from cli.shell import Command, Shell
from cli.terminal import Columns, print_line, print_lines, print_table
from cli.watch import job_failure, watch_job

MODEL = "mini-zh"
# Prompts that this small model can render, each with a good seed.
PROMPTS = {
    "红色的圆形": 1,
    "一个蓝色的正方形，黄色背景": 2,
    "左边一个黄色的星形，右边一个紫色的心形": 3,
    "草地上有一座红色的房子，天上有太阳": 4,
    "夜空中的月亮": 5,
    "一只橙色的猫，背景是蓝色的": 6,
}

TABLE: Columns = {
    "prompt": lambda picture: picture["prompt"],
    "seed": lambda picture: picture["seed"],
    "waited": lambda picture: f"{picture['wait_s']:.2f} s",
    "rendered": lambda picture: f"{picture['render_s']:.2f} s",
    "stored": lambda picture: f"{picture['store_s']:.2f} s",
}


@click.command(cls=Command)
@click.option(
    "--out", type=click.Path(path_type=Path), default="renders", show_default=True, help="The folder to save in."
)
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600, help="The most seconds to wait.")
@click.pass_obj
def demo(shell: Shell, out: Path, timeout: float) -> None:
    """Start a local farm, render a few Chinese prompts, show where the pictures are. The farm stays up."""
    if shell.format in (None, "auto"):
        shell.format = "human"  # whatever it is piped into
    make_folder(out)
    farm = start(shell.settings, None, None, None)
    shell.url, shell.key = farm["url"], read_key(shell.settings.home)
    wait_for_worker(shell, farm, timeout)
    shell.print_message(f"rendering {len(PROMPTS)} prompts with {MODEL}")
    jobs = [shell.client.submit({"prompt": p, "model": MODEL, "seed": seed}) for p, seed in PROMPTS.items()]
    pictures = [picture for job in jobs for picture in finish(shell, job, out, timeout)]
    show(shell, farm, pictures)


def wait_for_worker(shell: Shell, farm: dict[str, Any], timeout: float) -> None:
    """Return when a worker serves MODEL. Raises Failure after `timeout` seconds, and for one that does not start."""
    deadline, began = time.monotonic() + timeout, datetime.now(UTC)
    is_announced = False
    while True:
        known = shell.client.get("/v1/workers")["items"]
        if any(worker["state"] == "ready" and MODEL in worker["models"] for worker in known):
            return
        check_started(known, began)
        if not is_announced:
            shell.print_message("waiting for a worker to be ready")
            is_announced = True
        if time.monotonic() > deadline:
            log = f"{farm['home']}/logs/worker-1.log"
            raise Failure(sentence("model_not_served", model=MODEL, log=log), TIMED_OUT)
        time.sleep(0.2)


def check_started(known: list[Json], began: datetime) -> None:
    """Raises Failure for a worker that has refused its device since then."""
    for worker in known:
        is_refused = worker["state"] == "stopped" and not worker["models"]
        if is_refused and datetime.fromisoformat(worker["seen_at"]) > began:
            raise Failure(sentence("worker_not_started", worker=worker["name"], reason=worker["reason"]))


def finish(shell: Shell, job: Json, out: Path, timeout: float) -> list[dict[str, Any]]:
    """Wait for a job and save its pictures. Raises Failure where a file's sha256 is not the recorded one."""
    job = watch_job(shell, job["id"], timeout)
    if failure := job_failure(job):
        raise failure
    save(shell, job, out)
    for image in job["images"]:
        if hashlib.sha256(Path(image["path"]).read_bytes()).hexdigest() != image["sha256"]:
            raise Failure(sentence("file_differs", path=image["path"]))
    return [
        {"prompt": job["recipe"]["prompt"], "job_id": job["id"]}
        | {name: image[name] for name in ("id", "path", "sha256", "seed")}
        | {name: job["timings"][name] for name in ("wait_s", "render_s", "store_s")}
        for image in job["images"]
    ]


def show(shell: Shell, farm: dict[str, Any], pictures: list[dict[str, Any]]) -> None:
    curl, dashboard = curl_command(shell, farm["url"]), shell.client.post("/dashboard/links")["url"]
    if shell.output_format != "human":
        shown = {"url": farm["url"], "pictures": pictures, "curl": curl, "dashboard": dashboard}
        shell.print_record(shown, {}, name="curl")
        return
    program = program_name()
    print_table(pictures, TABLE)
    print_lines("The pictures, for `sha256sum -c`; the recorded, the stored and the saved sha256 are equal:\n")
    for picture in pictures:
        print_line(f"{picture['sha256']}  {picture['path']}")
    print_lines(
        f"""
{MODEL} is a toy of 12 MB: it renders flat shapes in eleven colours and a few small scenes.
For real pictures, on a machine with a GPU, accept the licence at
https://huggingface.co/svjack/Stable-Diffusion-FineTuned-zh-v0, and then:

  {program} down
  HF_TOKEN=hf_… {program} up --device cuda
  {program} models accept zh-v0
  {program} generate --model zh-v0 女孩们打开了另一世界的大门

The farm stays up at {farm["url"]} ({program} down stops it; its data and logs are in {farm["home"]}).
This link to its dashboard signs you in, once and within the hour:

  {dashboard}

Render a picture over HTTP:

{curl}"""
    )


def curl_command(shell: Shell, url: str) -> str:
    """A request to paste. It reads the key from its file, so that no shell history has the key."""
    key = f"$(cat {shlex.quote(str(key_file(shell.settings.home).absolute()))})"
    return (
        f"curl -sS --noproxy '*' {url}/v1/jobs -H 'Prefer: wait=60' -H 'Content-Type: application/json' \\\n"
        f'  -H "Authorization: Bearer {key}" -d \'{{"prompt": "紫色的心形", "model": "{MODEL}"}}\''
    )
