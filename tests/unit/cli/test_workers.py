"""`huafang workers`: the list, and which worker a name is for `drain` and `resume`."""

from collections.abc import Iterator

import pytest

from cli.commands.workers import devices, serves, state, why
from tests.support.command_line import CommandLine, FakeFarm, Request, Response, fake_farm

WORKERS = [
    {"id": "1", "name": "gpu-1", "state": "ready"},
    {"id": "2", "name": "gpu-2", "state": "ready"},
    {"id": "3", "name": "gpu-2", "state": "draining"},
    {"id": "4", "name": "gpu-1", "state": "stopped"},
]


QUARANTINES = [
    {"name": name, "quarantined_at": "2026-11-29T07:40:00Z", "reason": "its calls fail", "next_trial_at": "08:00"}
    for name in ("gpu-3", "gpu-4")
]
WORKERS += [{"id": "5", "name": "gpu-4", "state": "draining"}]


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    def answer(request: Request) -> Response:
        return Response(body={"items": WORKERS, "quarantines": QUARANTINES} if request.method == "GET" else {})

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
    ("named", "code", "expected"), [("gpu-2", 2, "2, 3"), ("4", 4, "no live worker"), ("6", 4, "no")]
)
def test_an_unknown_or_ambiguous_name_is_refused(
    farm: FakeFarm, capsys: pytest.CaptureFixture[str], named: str, code: int, expected: str
) -> None:
    done = CommandLine(capsys)("--url", farm.url, "--key=k", "workers", "drain", named)
    assert (done.code, posted(farm)) == (code, [])
    assert expected in done.err


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("gpu-3", ["DELETE /v1/quarantines/gpu-3"]),  # which is gone
        ("gpu-4", ["DELETE /v1/quarantines/gpu-4", "POST /v1/workers/5/resume"]),  # which drains too
    ],
)
def test_resume_lifts_the_quarantine_of_a_name(
    farm: FakeFarm, capsys: pytest.CaptureFixture[str], named: str, asked: list[str]
) -> None:
    assert CommandLine(capsys)("--url", farm.url, "--key=k", "workers", "resume", named).code == 0
    assert [f"{request.method} {request.path}" for request in farm.requests[1:]] == asked


def test_the_list_says_which_workers_are_quarantined_and_why() -> None:
    worker = {
        "state": "draining",
        "reason": "an operator asked for it",
        "refusals": {},
        "quarantined_at": "2026-11-29T07:40:00Z",
        "quarantine_reason": "its calls fail",
        "next_trial_at": "2026-11-29T08:00:00Z",
        "devices": [{"errors": ["its driver does not answer"]}],
    }
    assert state(worker) == "draining, quarantined"
    assert why(worker) == [
        "quarantined since 2026-11-29T07:40:00Z: its calls fail (next trial: 2026-11-29T08:00:00Z)",
        "an operator asked for it",
        "its driver does not answer",
    ]


def test_the_list_tells_of_quarantined_workers_that_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_farm(lambda request: Response(body={"items": [], "quarantines": QUARANTINES})) as farm:
        done = CommandLine(capsys)("--url", farm.url, "--key=k", "--format=json", "workers", "ls")
        shown = CommandLine(capsys)("--url", farm.url, "--key=k", "--format=human", "workers", "ls")
    assert done.json == []
    assert "gpu-3 is not running and quarantined since 2026-11-29T07:40:00Z: its calls fail" in shown.out + shown.err


def test_the_list_has_what_devices_tell() -> None:
    device = {"name": "cuda:0", "memory_used": 9e9, "memory_total": 24e9, "utilisation": 0, "temperature_c": 64}
    cpu = {"name": "cpu", "memory_used": None, "memory_total": None, "utilisation": None, "temperature_c": None}
    assert devices({"devices": [device, cpu]}) == ["cuda:0 9 GB of 24 GB 0 % 64 °C", "cpu"]
    assert devices({}) == []  # of an older farm


def test_the_list_has_batch_size_and_speed_of_each_model() -> None:
    worker = {
        "models": ["zh-v0", "mini-zh"],
        "resident": ["zh-v0"],
        "capacity": {"zh-v0": 8},
        "seconds_per_image": {"zh-v0": 0.62},
    }
    assert serves(worker) == ["zh-v0 resident ×8 0.62 s", "mini-zh"]
