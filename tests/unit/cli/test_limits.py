"""`huafang limits`: a bar for each limit."""

from typing import Any

import pytest

from tests.support.command_line import CommandLine, Response, fake_farm


def item(limit: str, used: int | None, allowed: int | None, counted_by: str = "farm") -> dict[str, Any]:
    return {"limit": limit, "used": used, "allowed": allowed, "resets_at": None, "counted_by": counted_by}


ITEMS = [
    item("waiting_images", 1200, 4800),
    item("images_a_day", None, None),
    item("stored_bytes", 5_000_000_000, 4_000_000_000) | {"resets_at": "2026-11-30T00:00:00Z"},
    item("keys", 0, 0),
    item("open_streams", 0, 9, "process"),
]


def test_each_limit_has_a_bar_that_is_as_full_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_farm(lambda request: Response(body={"items": ITEMS, "tiers": []})) as farm:
        done = CommandLine(capsys)("--url", farm.url, "--key=k", "--format=human", "limits")
    assert (done.code, farm.requests[0].path) == (0, "/v1/limits")
    lines = [line.split() for line in done.out.splitlines()[2:]]
    assert lines == [
        ["waiting", "images", "#####...............", "1,200", "4,800"],
        ["images", "a", "day", "unlimited"],
        ["stored", "bytes", "####################", "5", "GB", "4", "GB", "2026-11-30", "00:00:00"],
        ["keys", "####################", "0", "0"],
        ["open", "streams", "....................", "0", "9", "of", "each", "API", "process"],
    ]
