"""A recipe as shell commands: the shell passes a hostile prompt on unchanged."""

import json
import subprocess
from typing import Any

import pytest

from api.dashboard.snippets import command_line, curl, draft_of
from api.schemas import JOB, Job
from cli.commands.generate import generate
from cli.shell import Shell

HOSTILE = [
    "红色的圆形",
    "it's a \"test\" $(reboot) `id` $HOME !! \\ \\' ; rm -rf ~ & | > < * ? # ~",
    "--out=/etc --help",
    "-",
    "one\ntwo\r\n\tthree",
    "\x1b]0;title\x07 \x7f \u0085 \u009b31m red",
    "abc\u202edef \u200b\u2066 👩\u200d🎨 \U000e0041",
    "\\u0041 \\n '\\''",
    "全角　空格",
]


def job(prompt: str, **changes: Any) -> Job:
    recipe = {name: value for name, value in JOB["recipe"].items() if name != "count"}
    return Job.model_validate({**JOB, "recipe": {**recipe, "prompt": prompt, "negative_prompt": prompt, **changes}})


def run(command: str, name: str) -> list[list[str]]:
    """The arguments of each call that the shell makes."""
    script = f"{name}() {{ printf '%s\\0' \"$@\" $'\\x1e'; }}\nHUAFANG_KEY=secret\n{command}\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    calls = done.stdout.decode().split("\x1e\0")
    return [call.split("\0")[:-1] for call in calls[:-1]]


@pytest.mark.parametrize("prompt", HOSTILE)
def test_curl_gets_the_prompt_unchanged(prompt: str) -> None:
    text = curl(draft_of(job(prompt)), "http://farm.example/")
    (arguments,) = run(text, "curl")
    sent = json.loads(arguments[arguments.index("-d") + 1])
    assert (sent["prompt"], sent["negative_prompt"], sent["seed"]) == (prompt, prompt, 42)
    assert "Authorization: Bearer secret" in arguments
    assert "http://farm.example/v1/jobs" in arguments
    assert "secret" not in text


@pytest.mark.parametrize("prompt", HOSTILE)
def test_huafang_gets_the_prompt_unchanged(prompt: str) -> None:
    text = command_line(draft_of(job(prompt)), "http://farm.example/")
    (arguments,) = run(text, "huafang")
    assert (arguments[0], arguments[-2:]) == ("generate", ["--", prompt])
    assert f"--negative={prompt}" in arguments


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_terminal_shows_every_character_of_a_command(prompt: str) -> None:
    draft = draft_of(job(prompt))
    for text in (curl(draft, "http://farm.example/"), command_line(draft, "http://farm.example/")):
        assert all(one.isprintable() or one in "\n　" for one in text)


def test_seeds_that_are_not_consecutive_take_a_command_each() -> None:
    draft = draft_of(job("圆", seeds=[7, 8, 1], lora=[{"name": "ink", "weight": 0.5}]))
    calls = run(command_line(draft, "http://farm.example/"), "huafang")
    assert [[one for one in call if one.startswith("--seed")] for call in calls] == [
        ["--seed=7"],
        ["--seed=8"],
        ["--seed=1"],
    ]
    assert all("--lora=ink:0.5" in call for call in calls)


def test_the_command_line_accepts_every_option() -> None:
    draft = draft_of(job("圆", source=JOB["id"], mask=JOB["id"], strength=0.5, lora=[{"name": "ink", "weight": 0.5}]))
    (arguments,) = run(command_line(draft, "http://farm.example/"), "huafang")
    found = generate.make_context("generate", arguments[1:], obj=Shell()).params
    given = {
        name: found[name] for name in ("prompt", "count", "seed", "model", "steps", "scheduler", "strength", "tier")
    }
    assert given == {name: draft[name] for name in given}
    assert (found["size"], found["image_format"], found["source"]) == ((512, 512), "png", draft["source"])
