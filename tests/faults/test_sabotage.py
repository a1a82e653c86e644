"""With one part of the farm broken on purpose, the storm reports which promise is broken."""

from pathlib import Path

import pytest

from tests.faults.test_storm import storm

FREEZING = "frozen_between_store_and_publish,worker_frozen,s3_errors"
KILLING = "worker_killed,worker_killed_while_rendering,redis_emptied"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sabotage", "faults", "promise"),
    [
        ("fence", FREEZING, "P4"),  # a revived worker publishes what another renders by now
        ("sweep", KILLING, "P1"),  # the leases of dead workers are not rescued
        ("heartbeat", "redis_emptied", "P6"),  # what takes longer than a lease is lost, by workers that are well
        ("cancel", "cancelled_while_running", "P7"),  # the images of a cancelled job go on
        ("keys", "fifty_duplicates,worker_frozen", "P8"),  # each duplicate makes a job of its own
        ("deletion", "worker_killed", "S3"),  # the rows of what is deleted go, and its bytes stay
        ("order", "s3_errors,worker_killed", "P3"),  # what was published has no bytes
        ("usage", "worker_killed", "USE"),  # a microbatch costs no more than one image
    ],
)
def test_a_sabotaged_farm_breaks_its_promises(tmp_path: Path, sabotage: str, faults: str, promise: str) -> None:
    arguments = ("--jobs", "100", "--minutes", "0.7", "--seed", "3", "--sabotage", sabotage, "--faults", faults)
    report = storm(tmp_path, *arguments, seconds=840)
    assert promise in report["examples"]
    assert report["jobs_answered_201"] >= 100
    assert not report["ok"]
