"""`jobs rm`, `batch rm` and `dataset rm` against a farm that answers as the test says."""

from collections.abc import Callable
from typing import Any

import pytest

from api.queries.batches import BATCH
from cli.commands import rm
from tests.support.command_line import CommandLine, Request, Response, fake_farm

ID, OTHER = BATCH["id"], "019c2f6e-7d50-7b1a-8f3e-000000000000"
GONE = {"id": ID, "kind": "batch", "deleted_at": "2026-11-22T09:00:00Z", "key_id": OTHER, "pictures_left": 12}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(rm, "POLL_S", 0)
    return lambda farm, *given: CommandLine(capsys)("--url", farm.url, "--key=k", "--format=json", *given)


def gone(left: int) -> Response:
    finished = None if left else "2026-11-22T09:01:00Z"
    tombstone = GONE | {"pictures_left": left, "finished_at": finished}
    return Response(410, {"detail": "It was deleted.", "code": "gone", "tombstone": tombstone})


class Deleting:
    """A farm with one thing, whose pictures go one by one."""

    def __init__(self, pictures: int = 2, thing: Any = None) -> None:
        self.left, self.thing, self.is_deleted = pictures, thing, False

    def __call__(self, request: Request) -> Response:
        if not request.path.endswith(ID):
            return Response(404, {"detail": "There is no such thing.", "code": "not_found"})
        if request.method == "DELETE":
            self.is_deleted = True
            return Response(204, None)
        if not self.is_deleted:
            return Response(200, self.thing)
        self.left = max(self.left - 1, 0)
        return gone(self.left)


@pytest.mark.parametrize("noun", ["jobs", "batch", "dataset"])
def test_it_deletes_and_says_what_is_left(call: Callable[..., Any], noun: str) -> None:
    with fake_farm(Deleting()) as farm:
        done = call(farm, noun, "rm", ID, *(["--yes"] if noun == "batch" else []))
    assert (done.code, [(one["id"], one["pictures_left"]) for one in done.json]) == (0, [(ID, 1)])
    assert [request.method for request in farm.requests] == ["DELETE", "GET"]


def test_it_waits_until_nothing_is_left(call: Callable[..., Any]) -> None:
    with fake_farm(Deleting(pictures=30)) as farm:
        done = call(farm, "jobs", "rm", ID, "--wait")
    assert (done.code, done.json[0]["pictures_left"], done.json[0]["finished_at"] is None) == (0, 0, False)
    assert "pictures left" in done.err


def test_a_batch_is_deleted_by_who_confirms_it_only(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_farm(Deleting(thing=BATCH)) as farm:
        done = call(farm, "batch", "rm", ID)
        assert (done.code, "--yes" in done.err, "897 pictures" in done.err) == (2, True, True)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        for answer, code in ((False, 1), (True, 0)):
            assert "DELETE" not in [request.method for request in farm.requests]
            monkeypatch.setattr("click.confirm", lambda *_, answer=answer, **__: answer)
            assert call(farm, "batch", "rm", ID).code == code
        assert "DELETE" in [request.method for request in farm.requests]


def test_one_that_is_not_there_does_not_keep_the_others(call: Callable[..., Any]) -> None:
    with fake_farm(Deleting()) as farm:
        done = call(farm, "jobs", "rm", OTHER, ID)
        assert (done.code, len(done.json), OTHER in done.err) == (6, 1, True)
        assert call(farm, "jobs", "rm", OTHER).code == 4


def test_what_was_deleted_is_not_found(call: Callable[..., Any]) -> None:
    with fake_farm(lambda request: gone(0)) as farm:
        done = call(farm, "jobs", "show", ID)
    assert (done.code, "It was deleted." in done.err) == (4, True)
