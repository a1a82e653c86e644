"""`huafang workers`: what the list says of one, and whom a name means to `drain` and `resume`."""

from collections.abc import Iterator

import pytest

from cli.commands.workers import serves
from tests.support.command_line import Asked, CommandLine, Farm, Say, farm_that

WORKERS = [
    {"id": "1", "name": "gpu-1", "state": "ready"},
    {"id": "2", "name": "gpu-2", "state": "ready"},
    {"id": "3", "name": "gpu-2", "state": "draining"},
    {"id": "4", "name": "gpu-1", "state": "stopped"},
]


@pytest.fixture
def farm() -> Iterator[Farm]:
    def answer(asked: Asked) -> Say:
        return Say(body={"items": WORKERS} if asked.method == "GET" else {})

    with farm_that(answer) as farm:
        yield farm


def posted(farm: Farm) -> list[str]:
    return [asked.path for asked in farm.asked if asked.method == "POST"]


@pytest.mark.parametrize(("named", "meant"), [("gpu-1", "1"), ("1", "1"), ("3", "3")])
@pytest.mark.parametrize("command", ["drain", "resume"])
def test_a_live_worker_is_named_by_its_name_or_id(
    farm: Farm, capsys: pytest.CaptureFixture[str], command: str, named: str, meant: str
) -> None:
    assert CommandLine(capsys)("--url", farm.url, "--key=k", "workers", command, named).code == 0
    assert posted(farm) == [f"/v1/workers/{meant}/{command}"]


@pytest.mark.parametrize(("named", "code", "says"), [("gpu-2", 2, "2, 3"), ("4", 4, "no live worker"), ("5", 4, "no")])
def test_whom_no_name_means_nothing_is_asked_of(
    farm: Farm, capsys: pytest.CaptureFixture[str], named: str, code: int, says: str
) -> None:
    done = CommandLine(capsys)("--url", farm.url, "--key=k", "workers", "drain", named)
    assert (done.code, posted(farm)) == (code, [])
    assert says in done.err


def test_the_list_says_of_each_model_what_the_worker_makes_of_it() -> None:
    worker = {
        "models": ["zh-v0", "mini-zh"],
        "resident": ["zh-v0"],
        "capacity": {"zh-v0": 8},
        "seconds_per_image": {"zh-v0": 0.62},
    }
    assert serves(worker) == "zh-v0 resident ×8 0.62 s\nmini-zh"
