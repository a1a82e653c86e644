"""No process of a farm grows while a service is away: two outages in the suite, in the long form each for two minutes.

Compared are medians of what each process holds: late in the outage with early in it, and afterwards with before.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.outages.farm import OUTAGES
from tests.outages.measure import observe
from tests.outages.users import used_farm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")

WARM_UP_S = 3.0


def grown(home: Path, outages: Iterable[str], seconds: float, recovery_s: float) -> dict[str, object]:
    """By outage and process: by how much more than chance it grew during the outage, and what stayed afterwards."""
    found: dict[str, object] = {}
    with used_farm(home, WARM_UP_S) as (farm, _):
        for outage in outages:
            for process, story in observe(farm, OUTAGES[outage], seconds, recovery_s).items():
                if story.growth() or story.remains():
                    found[f"{process} during {outage}"] = story
    return found


@pytest.mark.timeout(600)
def test_no_process_grows_while_redis_is_full_or_the_store_is_silent(tmp_path: Path) -> None:
    assert grown(tmp_path, ["redis_full", "s3_silent"], seconds=8, recovery_s=2) == {}


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_no_process_grows_in_two_minutes_of_any_outage(tmp_path: Path) -> None:
    assert grown(tmp_path, OUTAGES, seconds=120, recovery_s=30) == {}
