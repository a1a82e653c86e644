"""Charts of the dashboard: stacked bars on a scale of round numbers."""

from datetime import UTC, datetime

import pytest

from api.dashboard.charts import build_bars, build_chart, round_up
from common.queue.stats import HOUR, Point

NOW = datetime(2026, 11, 26, tzinfo=UTC)


def test_the_bars_of_a_step_are_stacked() -> None:
    chart = build_chart([Point(NOW, 0, 0, 0, 9), Point(NOW, 5, 2, 1, 0)], HOUR)
    assert (chart.columns, chart.top, chart.peak) == (2, 10, 8)
    assert chart.totals == {"failed": 1, "flagged": 2, "stored": 5}
    assert chart.paths == {
        "failed": "M1.1 10v-1h0.8v1z",
        "flagged": "M1.1 9v-2h0.8v2z",
        "stored": "M1.1 7v-5h0.8v5z",
    }


def test_a_step_without_images_has_no_bars() -> None:
    assert set(build_chart([Point(NOW, 0, 0, 0, 0)], HOUR).paths.values()) == {""}


def test_days_have_bars_of_one_number() -> None:
    bars = build_bars([0, 3, 8])
    assert (bars.columns, bars.top, bars.peak) == (3, 10, 8)
    assert bars.path == "M1.1 10v-3h0.8v3zM2.1 10v-8h0.8v8z"
    assert build_bars([0]).path == build_bars([]).path == ""


@pytest.mark.parametrize(("peak", "top"), [(0, 4), (4, 4), (5, 10), (11, 20), (21, 40), (101, 200), (4321, 10_000)])
def test_the_scale_is_a_round_number_that_halves(peak: int, top: int) -> None:
    assert round_up(peak) == top
    assert top % 2 == 0
