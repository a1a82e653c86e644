"""The harness of the benches: what it computes from figures, without a real measurement."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import BENCHES, __main__
from bench.harness import measurement
from bench.harness.measurement import Figures, Goal, Options, Sides
from bench.harness.report import write_report

HOME = Path(__file__).resolve().parents[3]


class Counted:
    """A bench whose sides do nothing: `ours` returns these speeds, round by round; the other side is constant."""

    __doc__ = "Two sides that do nothing."
    GOALS = (Goal("ours", "theirs", at_least=0.9), Goal("theirs"), Goal("theirs", measure="ms", at_most=5))

    def __init__(self, *speeds: float) -> None:
        self.speeds = list(speeds)
        self.calls: list[str] = []
        self.is_open = False

    @contextmanager
    def sides(self, options: Options) -> Iterator[Sides]:
        self.is_open = True
        yield {"theirs": self.theirs, "ours": self.ours}
        self.is_open = False

    def ours(self) -> Figures:
        self.calls.append("ours")
        return {"images/s": self.speeds.pop(0)}

    def theirs(self) -> Figures:
        self.calls.append("theirs")
        return {"images/s": 10.0, "ms": 4.0}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measurement, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def measured(*speeds: float, **options: Any) -> dict[str, Any]:
    return measurement.measure("claim", Counted(*speeds), Options(**options), say=lambda line: None)


def test_sides_take_turns_in_the_opposite_order_every_second_round() -> None:
    bench = Counted(9, 9, 9)
    measurement.measure("counted", bench, Options(rounds=3), say=lambda line: None)
    assert bench.calls == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert not bench.is_open


def test_a_goal_is_judged_by_the_median_of_what_each_round_compared() -> None:
    first, shown, absolute = measured(12, 8, 9.5)["goals"]
    assert (first["median"], first["low"], first["high"], first["met"]) == (0.95, 0.8, 1.2, True)
    assert (shown["median"], shown["met"]) == (10, None)
    assert (absolute["median"], absolute["met"]) == (4, True)


def test_a_missed_goal_is_a_sentence() -> None:
    assert measurement.missed(measured(8, 8, 9)) == ["claim: ours ÷ theirs is 0.8, not ≥ 0.9"]
    assert measurement.missed(measured(9, 9, 9)) == []


def test_goals_of_sides_that_were_not_measured_are_left_out() -> None:
    assert [goal["of"] for goal in measured(9, 9, 9, only="theirs")["goals"]] == ["theirs", "theirs"]


@pytest.mark.parametrize(("speed", "code"), [(9.5, 0), (8, 1)])
def test_check_exits_1_where_a_goal_is_missed(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], speed: float, code: int
) -> None:
    monkeypatch.setattr(measurement, "find", lambda name: Counted(speed))
    assert __main__.main(["claim", "--quick", "--json", "--check"]) == code
    assert json.loads(capsys.readouterr().out) == json.loads((results / "quick" / "claim.json").read_text())


def test_the_results_of_a_device_have_their_own_file(results: Path) -> None:
    assert measurement.path_of("claim", Options()) == results / "claim.json"
    assert measurement.path_of("claim", Options(device="cuda:1")) == results / "claim.cuda.json"
    assert measurement.path_of("claim", Options(only="farm")) == results / "quick" / "claim.json"


def test_the_report_shows_every_figure_and_says_that_no_accelerator_was_seen(results: Path, tmp_path: Path) -> None:
    measurement.save(measured(8, 9, 9.25), measurement.path_of("claim", Options()))
    page, plots = tmp_path / "docs" / "10-performance.md", tmp_path / "docs" / "plots"
    page.parent.mkdir()
    write_report(results, page, plots)
    text = page.read_text()
    assert "| claim | ours ÷ theirs | 0.9 | ≥ 0.9 | met |" in text
    assert "| ours | images/s | 9 | 8 – 9.25 |" in text
    assert "![claim](plots/claim.svg)" in text
    assert measurement.commit() in text
    assert "No figure on this page was seen on an accelerator" in text
    drawn = [element.text for element in ElementTree.parse(plots / "claim.svg").iter() if element.text]
    assert {"theirs", "ours", "images/s", "ms", "9", "10", "4"} <= {*drawn}

    measurement.save(measured(9, 9, 9, device="cuda"), measurement.path_of("claim", Options(device="cuda")))
    write_report(results, page, plots)
    assert "## claim on cuda" in page.read_text()
    assert "No figure on this page was seen on an accelerator" not in page.read_text()


def test_the_page_ends_with_the_figures_of_an_accelerator_that_were_copied_by_hand(
    results: Path, tmp_path: Path
) -> None:
    measurement.save(measured(9, 9, 9), measurement.path_of("claim", Options()))
    (results / "accelerator.md").write_text("## On an accelerator\nSeen once.\n")
    page = tmp_path / "docs" / "10-performance.md"
    page.parent.mkdir()
    write_report(results, page, tmp_path / "docs" / "plots")
    assert page.read_text().endswith("## On an accelerator\nSeen once.\n")
    assert "No figure on this page was seen on an accelerator" not in page.read_text()


def test_every_bench_is_named() -> None:
    there = {path.stem for path in (HOME / "bench" / "cases").glob("*.py") if "\nGOALS" in path.read_text()}
    assert there == set(BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_a_bench_describes_its_sides(name: str) -> None:
    bench: Any = SimpleNamespace(**vars(measurement.find(name)))
    assert len(bench.__doc__.split(". ")) > 1
    assert bench.GOALS
    assert callable(bench.sides)
