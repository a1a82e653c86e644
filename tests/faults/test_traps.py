"""Every function that the storm wraps or replaces is one that the product has, and calls where it is wrapped."""

import os
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]

SET_ALL = """
import sys
import api.app, worker.__main__, worker.render.worker
from common.catalog import catalog
from common.config import SHIPPED_CATALOG
from tests.faults import sabotaged
from worker.pipelines import registry

sabotaged.set_traps()
for sabotage in sabotaged.SABOTAGES.values():
    sabotage()
registry.load(catalog.read(SHIPPED_CATALOG).get("mini-zh"), "stub")  # its method is wrapped when it is loaded
for owner, name, original in sabotaged.REPLACED:
    for module in [module for module in sys.modules if module.partition(".")[0] in ("api", "common", "worker")]:
        if any(value is original for value in vars(sys.modules[module]).values()):
            sys.exit(f"{module} calls {name} by a name of its own, which is not wrapped")
print(len(sabotaged.REPLACED))
"""


def test_what_the_storm_replaces_exists_and_is_called_through_its_module(tmp_path: Path) -> None:
    environment = {**os.environ, "STORM_TRAPS": str(tmp_path), "STORM_NAME": "stub-1"}
    done = subprocess.run(
        [sys.executable, "-c", SET_ALL], cwd=HOME, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10
