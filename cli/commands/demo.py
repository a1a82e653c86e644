"""`huafang demo`: from nothing to pictures. Starts the local farm, renders, saves, and says what to try next.

    start the farm ──► wait for a worker ──► submit the prompts ──► wait ──► save, and compare sha256s ──► show

Leaves the farm up. A second run finds it and draws the same pictures again, as new jobs.
"""

import hashlib
import shlex
import time
from pathlib import Path
from typing import Any

import click

from cli.client import Json
from cli.commands.farm import start
from cli.commands.generate import check_folder, save
from cli.local import called, key_file, read_key
from cli.shell import TIMED_OUT, Columns, Command, Failure, Shell, print_table
from cli.watch import outcome, watch

MODEL = "mini-zh"
# What it can draw, and a seed from which it does so well.
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
@click.option("--out", type=click.Path(path_type=Path), default="renders", show_default=True, help="Where to save.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=600, help="Seconds to wait at most.")
@click.pass_obj
def demo(shell: Shell, out: Path, timeout: float) -> None:
    """Set up a local farm, render a few Chinese prompts, show where the pictures are. Leaves the farm up."""
    if shell.format in (None, "auto"):
        shell.format = "human"  # a demo speaks to people, whatever it is piped into
    check_folder(out)
    farm = start(shell.settings, None, None, None)
    shell.url, shell.key = farm["url"], read_key(shell.settings.home)
    wait_for_worker(shell, farm, timeout)
    shell.note(f"rendering {len(PROMPTS)} prompts with {MODEL}")
    jobs = [shell.client.submit({"prompt": p, "model": MODEL, "seed": seed}) for p, seed in PROMPTS.items()]
    pictures = [picture for job in jobs for picture in finish(shell, job, out, timeout)]
    show(shell, farm, pictures)


def wait_for_worker(shell: Shell, farm: dict[str, Any], timeout: float) -> None:
    """Loading a model takes a while at the first start; a worker that cannot is better said than waited for."""
    deadline = time.monotonic() + timeout
    told = False
    while not any(w["state"] == "ready" and MODEL in w["models"] for w in shell.client.get("/v1/workers")["items"]):
        if not told:
            shell.note("waiting for a worker to be ready")
            told = True
        if time.monotonic() > deadline:
            raise Failure(
                f"No worker is ready to draw with {MODEL}; {farm['home']}/logs/worker-1.log says why.", TIMED_OUT
            )
        time.sleep(0.2)


def finish(shell: Shell, job: Json, out: Path, timeout: float) -> list[dict[str, Any]]:
    """The pictures of a job: rendered, saved, and the same bytes in the file, in the farm's row and in its store."""
    job = watch(shell, job["id"], timeout)
    if missing := outcome(job):
        raise missing
    save(shell, job, out)
    for image in job["images"]:
        if hashlib.sha256(Path(image["path"]).read_bytes()).hexdigest() != image["sha256"]:
            raise Failure(f"{image['path']} is not what the farm stored.")
    return [
        {"prompt": job["recipe"]["prompt"], "job_id": job["id"]}
        | {name: image[name] for name in ("id", "path", "sha256", "seed")}
        | {name: job["timings"][name] for name in ("wait_s", "render_s", "store_s")}
        for image in job["images"]
    ]


def show(shell: Shell, farm: dict[str, Any], pictures: list[dict[str, Any]]) -> None:
    curl, dashboard = curl_command(shell, farm["url"]), shell.client.post("/dashboard/links")["url"]
    if shell.speaks != "human":
        shown = {"url": farm["url"], "pictures": pictures, "curl": curl, "dashboard": dashboard}
        shell.print_record(shown, {}, name="curl")
        return
    print_table(pictures, TABLE)
    click.echo("The pictures, as `sha256sum -c` reads it; row, stored bytes and file agree:\n")
    for picture in pictures:
        click.echo(f"{picture['sha256']}  {picture['path']}")
    click.echo(
        f"""
{MODEL} is a toy of 12 MB: it draws flat shapes in eleven colours, a few little scenes and nothing else.
For real pictures, on a machine with a GPU, accept the licence at
https://huggingface.co/svjack/Stable-Diffusion-FineTuned-zh-v0, and then:

  {called()} down
  HF_TOKEN=hf_… {called()} up --device cuda
  {called()} models accept zh-v0
  {called()} generate --model zh-v0 女孩们打开了另一世界的大门

The farm stays up at {farm["url"]} ({called()} down stops it; its data and logs are in {farm["home"]}).
See it in a browser, signed in already by this link, which works once and within the hour:

  {dashboard}

Ask it for a picture by HTTP:

{curl}"""
    )


def curl_command(shell: Shell, url: str) -> str:
    """A request to paste. The key comes from its file, so it is in no log and no shell's history."""
    key = f"$(cat {shlex.quote(str(key_file(shell.settings.home).absolute()))})"
    return (
        f"curl -sS --noproxy '*' {url}/v1/jobs -H 'Prefer: wait=60' -H 'Content-Type: application/json' \\\n"
        f'  -H "Authorization: Bearer {key}" -d \'{{"prompt": "紫色的心形", "model": "{MODEL}"}}\''
    )
