"""`huafang admin prune`: what the sweep would delete, at once, or only counted."""

import json
import subprocess
import sys

from sqlalchemy import text

from common.config import Settings
from embedded.farm import variables
from tests.support.ageing import age
from tests.support.stories import Story

EXPIRED = """
    INSERT INTO idempotency_keys (tenant_id, route, key, fingerprint, made_id)
    SELECT :tenant, 'route', n::text, '', gen_random_uuid() FROM generate_series(1, 1500) AS n
"""


def prune(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "common.bootstrap", "prune", *options]
    return subprocess.run(command, env=variables(settings), capture_output=True, text=True, timeout=60, check=False)


def test_a_dry_run_counts_what_the_command_deletes(story: Story, settings: Settings) -> None:
    story.submit()
    story.publish(story.started())
    with story.database.begin() as connection:
        connection.execute(text(EXPIRED), {"tenant": story.tenant()})
    age(story.database, 40)
    expected = {"leases": 1, "lanes": 0, "lane_samples": 0, "workers": 0, "idempotency_keys": 1500, "audit": 0,
                "step_failures": 0, "trial_pictures": 0}  # fmt: skip
    for _ in range(2):
        counted = prune(settings, "--dry-run")
        assert json.loads(counted.stdout) == expected, counted.stderr
    assert story.count("idempotency_keys") == 1500
    deleted = prune(settings)
    assert json.loads(deleted.stdout) == expected
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert (story.count("leases"), story.count("idempotency_keys")) == (0, 0)
    assert set(json.loads(prune(settings).stdout).values()) == {0}


def test_another_farms_rows_are_left_alone(story: Story, settings: Settings) -> None:
    with story.database.begin() as connection:
        connection.execute(text(EXPIRED), {"tenant": story.tenant()})
    age(story.database, 40)
    with story.database.begin() as connection:
        connection.execute(text("INSERT INTO farm (id, bucket_marked_at) VALUES (gen_random_uuid(), now())"))
    refused = prune(settings)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1
    assert story.count("idempotency_keys") == 1500
