"""`huafang usage`: what it asks the farm, and the table that it makes of the answer."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.support.command_line import CommandLine, FakeFarm, Request, Response, fake_farm

SUMS = {"images": 1204, "gpu_seconds": 4876.2, "megapixels": 315.6, "bytes": 412_307_117, "cost": 24.08}
ITEMS = [
    {"key_id": "k1", "key": "the web shop", "model": "zh-v0", **SUMS},
    {"key_id": "k2", "key": None, "model": "mini-zh", **SUMS, "cost": None},
    {"key_id": None, "key": None, "model": "mini-zh", **SUMS, "cost": None},
]
REPORT = {"from": "2026-11-01", "to": "2026-11-30", "by": ["key", "model"], "items": ITEMS, "total": SUMS}


@pytest.fixture
def farm() -> Iterator[FakeFarm]:
    def answer(request: Request) -> Response:
        has_prices = "currency" not in request.path
        return Response(body=REPORT | {"currency": "CNY" if has_prices else None})

    with fake_farm(answer) as farm:
        yield farm


def asked(farm: FakeFarm) -> dict[str, Any]:
    url = urlsplit(farm.requests[-1].path)
    assert url.path == "/v1/usage"
    return dict(parse_qsl(url.query))


def test_days_and_groups_become_a_query(farm: FakeFarm, capsys: pytest.CaptureFixture[str]) -> None:
    call, today = CommandLine(capsys), datetime.now(UTC).date()
    start = ("--url", farm.url, "--key=k", "usage")
    for arguments, query in (
        ((), {"by": "day"}),
        (("--by", "key, model", "--last", "1d"), {"by": "key,model", "from": str(today)}),
        (("--last", "30d"), {"by": "day", "from": str(today - timedelta(29))}),
        (("--last", "7"), {"by": "day", "from": str(today - timedelta(6))}),
        (("--from=2026-11-01", "--to=2026-11-30"), {"by": "day", "from": "2026-11-01", "to": "2026-11-30"}),
        (("--by=tenant", "--all-tenants"), {"by": "tenant", "all_tenants": "true"}),
    ):
        assert call(*start, *arguments).code == 0
        assert asked(farm) == query


def test_a_table_has_names_and_a_total(farm: FakeFarm, capsys: pytest.CaptureFixture[str]) -> None:
    lines = CommandLine(capsys)("--url", farm.url, "--key=k", "--format=human", "usage", "--by=key,model").out
    shown = [line.split() for line in lines.splitlines()]
    assert lines.splitlines()[0].split("  ")[0] == "key"
    assert [line[0] for line in shown[2:]] == ["the", "k2", "–", "total"]
    assert shown[-1][-8:] == ["1,204", "81", "min", "315.6", "412", "MB", "24.08", "CNY"]


def test_json_is_the_whole_answer_and_quiet_the_groups(farm: FakeFarm, capsys: pytest.CaptureFixture[str]) -> None:
    call = CommandLine(capsys)
    assert call("--url", farm.url, "--key=k", "--format=json", "usage").json == REPORT | {"currency": "CNY"}
    quiet = call("--url", farm.url, "--key=k", "--format=quiet", "usage").out
    assert quiet.splitlines()[0] == "the web shop"
    assert len(quiet.splitlines()) == len(ITEMS)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--last", "soon"), "30d"),
        (("--last", "0d"), "30d"),
        (("--last", "7d", "--from", "2026-11-01"), "either --last"),
        (("--from", "1.11."), "--from"),
        (("--by", "day,,key"), "20,50"),
    ],
)
def test_what_is_no_day_is_a_usage_error(
    farm: FakeFarm, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    done = CommandLine(capsys)("--url", farm.url, "--key=k", "usage", *arguments)
    assert (done.code, farm.requests) == (2, [])
    assert expected in done.err
