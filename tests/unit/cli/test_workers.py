"""`huafang workers`: the list, and which worker a name is for `drain` and `resume`."""

from collections.abc import Iterator

import pytest

from cli.commands.workers import serves
from tests.support.command_line import CommandLine, FakeFarm, Request, Response, fake_farm

WORKERS = [
    {"id": "1", "name": "gpu-1", "state": "ready"},
    {"id": "2", "name": "gpu-2", "state": "ready"},
    {"id": "3", "name": "gpu-2", "state": "draining"},
    {"id": "4", "name": "gpu-1", "state": "stopped"},
]


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    def answer(request: Request) -> Response:
        return Response(body={"items": WORKERS} if request.method == "GET" else {})

    with fake_farm(answer) as farm:
        yield farm


def posted(farm: FakeFarm) -> list[str]:
    return [request.path for request in farm.requests if request.method == "POST"]


@pytest.mark.parametrize(("named", "meant"), [("gpu-1", "1"), ("1", "1"), ("3", "3")])
@pytest.mark.parametrize("command", ["drain", "resume"])
def test_a_live_worker_is_found_by_name_or_id(
    farm: FakeFarm, capsys: pytest.CaptureFixture[str], command: str, named: str, meant: str
) -> None:
    assert CommandLine(capsys)("--url", farm.url, "--key=k", "workers", command, named).code == 0
    assert posted(farm) == [f"/v1/workers/{meant}/{command}"]


@pytest.mark.parametrize(
    ("named", "code", "expected"), [("gpu-2", 2, "2, 3"), ("4", 4, "no live worker"), ("5", 4, "no")]
)
def test_an_unknown_or_ambiguous_name_is_refused(
    farm: FakeFarm, capsys: pytest.CaptureFixture[str], named: str, code: int, expected: str
) -> None:
    done = CommandLine(capsys)("--url", farm.url, "--key=k", "workers", "drain", named)
    assert (done.code, posted(farm)) == (code, [])
    assert expected in done.err


def test_the_list_has_batch_size_and_speed_of_each_model() -> None:
    worker = {
        "models": ["zh-v0", "mini-zh"],
        "resident": ["zh-v0"],
        "capacity": {"zh-v0": 8},
        "seconds_per_image": {"zh-v0": 0.62},
    }
    assert serves(worker) == ["zh-v0 resident ×8 0.62 s", "mini-zh"]
