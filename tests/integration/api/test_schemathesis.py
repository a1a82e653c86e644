"""Every route with odd and broken input, made by schemathesis from the OpenAPI document: all its checks and phases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.enums import Scope
from tests.support.serving import Api

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
CONFIG = Path(__file__).with_name("schemathesis.toml")
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")

# Schemathesis lists the keys and revokes them, its own too: every later request would be refused as a stranger's.
KEEP_KEYS = """
    CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.revoked_at := NULL; RETURN NEW; END';
    CREATE TRIGGER keep BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION keep()
"""


def check(api: Api, folder: Path, *options: str) -> None:
    with api.database.begin() as connection:
        connection.exec_driver_sql(KEEP_KEYS)
    with api.client(scopes=list(Scope)) as client:
        done = subprocess.run(
            [
                *(SCHEMATHESIS, "--config-file", CONFIG, "run", f"{api.url}/openapi.json"),
                *("--header", f"Authorization: {client.headers['Authorization']}"),
                *("--checks", "all", "--mode", "all", "--seed", "1", "--generation-database", "none", "--no-color"),
                *options,
            ],
            cwd=folder,
            env=os.environ | {"SCHEMATHESIS_HOOKS": str(HOOKS)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
        assert client.get("/v1/keys").status_code == 200  # the key was good to the end


def test_a_few_of_each_kind(api: Api, tmp_path: Path) -> None:
    """Without the phases `examples` and `coverage`, which take most of the time: the long form has them."""
    check(api, tmp_path, "--phases", "fuzzing,stateful", "--max-examples", "8", "--no-shrink")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_of_each_kind(api: Api, tmp_path: Path) -> None:
    check(api, tmp_path, "--max-examples", "50")
