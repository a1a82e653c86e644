"""docker-compose.yml and its images, as far as they can be checked without a container engine.

The real `docker-compose` and `hadolint` read the files; health checks run against real servers.
"""

import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from common.config import Settings
from common.storage import Storage

HOME = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
DOCKERFILES = sorted((HOME / "deploy").glob("*.Dockerfile"))
SECRETS = {
    "HUAFANG_POSTGRES_PASSWORD": "postgressecret",
    "HUAFANG_VALKEY_PASSWORD": "valkeysecret",
    "HUAFANG_S3_ACCESS_KEY": "s3user",
    "HUAFANG_S3_SECRET_KEY": "s3secret",
    "HUAFANG_KEY_PEPPER": "pepper",
}


def compose(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "docker-compose", "--file", HOME / "docker-compose.yml", "--env-file", os.devnull, *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def farm(*profiles: str) -> Any:
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    done = compose(*flags, "config", "--format", "json", **SECRETS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


SERVICES = farm("cpu", "gpu")["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


@pytest.mark.parametrize("profiles", [(), ("cpu",), ("gpu",), ("cpu", "gpu")])
def test_each_profile_has_its_services(profiles: tuple[str, ...]) -> None:
    always = {"postgres", "valkey", "seaweedfs", "migrate", "api", "control"}
    assert set(farm(*profiles)["services"]) == always | {f"worker-{profile}" for profile in profiles}


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_has_a_default(secret: str) -> None:
    without = {name: value for name, value in SECRETS.items() if name != secret}
    done = compose("--profile", "cpu", "config", "-q", **without)
    assert done.returncode != 0
    assert f"required variable {secret} is missing a value" in done.stderr


def test_the_example_names_every_variable_and_no_secret() -> None:
    named = re.findall(r"\$\{(\w+)", (HOME / "docker-compose.yml").read_text())
    passed_on = [name for service in OURS.values() for name, value in service["environment"].items() if value is None]
    example = dict(re.findall(r"^(?:# )?(\w+)=(.*)$", (HOME / "deploy" / "env.example").read_text(), re.MULTILINE))
    assert set(named) | set(passed_on) == set(example)
    assert [name for name in SECRETS if example[name] and name != "HUAFANG_S3_ACCESS_KEY"] == []


@pytest.mark.parametrize("name", OURS)
def test_our_settings_are_settings(name: str) -> None:
    known = {f"HUAFANG_{field.upper()}" for field in Settings.model_fields}
    given = {variable: value for variable, value in OURS[name]["environment"].items() if value is not None}
    assert {variable for variable in OURS[name]["environment"] if variable.startswith("HUAFANG_")} <= known
    Settings(**{variable.removeprefix("HUAFANG_").lower(): value for variable, value in given.items()})


def test_the_passwords_reach_both_sides() -> None:
    url = OURS["api"]["environment"]["HUAFANG_DATABASE_URL"]
    postgres = SERVICES["postgres"]["environment"]
    assert url == f"postgresql://{postgres['POSTGRES_USER']}:postgressecret@postgres:5432/{postgres['POSTGRES_DB']}"
    assert postgres["POSTGRES_PASSWORD"] == "postgressecret"
    valkey = SERVICES["valkey"]
    assert OURS["api"]["environment"]["HUAFANG_REDIS_URL"] == "redis://:valkeysecret@valkey:6379/0"
    assert valkey["command"][valkey["command"].index("--requirepass") + 1] == "valkeysecret"
    assert valkey["environment"]["REDISCLI_AUTH"] == "valkeysecret"
    (identity,) = json.loads(farm()["configs"]["s3"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": "s3user", "secretKey": "s3secret"}]


def test_redis_evicts_nothing() -> None:
    command = SERVICES["valkey"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_healthcheck_or_runs_once(name: str) -> None:
    service = SERVICES[name]
    if name == "migrate":
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
        assert service["restart"] == "unless-stopped"


def test_only_the_api_and_the_images_can_be_reached_and_only_from_here() -> None:
    published = {
        name: {(port["host_ip"], port["target"]) for port in service["ports"]}
        for name, service in SERVICES.items()
        if service.get("ports")
    }
    assert published == {"api": {("127.0.0.1", 8000)}, "seaweedfs": {("127.0.0.1", 8333)}}


def test_data_are_in_named_volumes() -> None:
    volumes = set(farm("cpu")["volumes"])
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            assert mount["type"] == "volume"
            assert mount["source"] in volumes
    # Since 18 the image keeps its data below this folder; mounted a level deeper, it would be lost with the container.
    assert [mount["target"] for mount in SERVICES["postgres"]["volumes"]] == ["/var/lib/postgresql"]


def test_the_gpu_worker_has_its_gpu_to_itself() -> None:
    (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert SERVICES["worker-gpu"]["environment"]["HUAFANG_DEVICE"] == "cuda"
    assert SERVICES["worker-gpu"]["build"]["args"]["TORCH_BACKEND"].startswith("cu")
    assert "deploy" not in SERVICES["worker-cpu"]
    assert SERVICES["worker-cpu"]["image"] != SERVICES["worker-gpu"]["image"]


# --- the images


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_is_sound(dockerfile: Path) -> None:
    done = subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_is_not_root(dockerfile: Path) -> None:
    last = dockerfile.read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["10001"]


def test_every_image_has_its_dockerfile() -> None:
    used = {service["build"]["dockerfile"] for service in OURS.values()}
    assert used == {f"deploy/{path.name}" for path in DOCKERFILES}


def test_the_images_use_the_uv_of_the_bootstrap() -> None:
    pinned = re.findall(r'^UV = "(.+)"$', (HOME / "deploy" / "install.py").read_text(), re.MULTILINE)
    for dockerfile in DOCKERFILES:
        assert re.findall(r"uv==(\S+)", dockerfile.read_text()) == pinned


def test_the_build_context_has_the_wheel_and_no_secret() -> None:
    lines = (HOME / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    wheel = set(
        re.findall(r'"(\w+)"', re.findall(r"^packages = (\[.*\])", (HOME / "pyproject.toml").read_text(), re.M)[0])
    )
    assert wheel | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "deploy/health.py"} == kept
    assert not any(fnmatch.fnmatch(".env", pattern) for pattern in kept)


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_a_command_exists(name: str) -> None:
    given = OURS[name].get("command")
    if given is None:
        given = json.loads(re.findall(r"^CMD (.+)$", (HOME / OURS[name]["build"]["dockerfile"]).read_text(), re.M)[0])
    assert given[0] == "huafang"
    done = subprocess.run([BIN / "huafang", *given[1:3], "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what runs inside


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": "/nonexistent", **env}
    return subprocess.run(
        [*arguments], cwd="/", env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_migrate_makes_tables_and_bucket(settings: Settings, farm_env: dict[str, str]) -> None:
    bucket = f"{settings.s3_bucket}-new"
    done = python(*OURS["migrate"]["command"], env={**farm_env, "HUAFANG_S3_BUCKET": bucket})
    assert done.returncode == 0, done.stderr
    Storage(settings.model_copy(update={"s3_bucket": bucket})).check()


def health(name: str, env: dict[str, str]) -> int:
    command = [part.replace("/opt/huafang", str(HOME / "deploy")) for part in OURS[name]["healthcheck"]["test"][1:]]
    return python(*command, env=env).returncode


def test_a_worker_is_healthy_while_it_sends_heartbeats(database: Engine, farm_env: dict[str, str]) -> None:
    env = {**farm_env, "HUAFANG_WORKER_NAME": "here"}
    assert health("worker-cpu", env) == 1
    with database.begin() as connection:
        connection.execute(
            text("INSERT INTO workers (id, name, class, models) VALUES (gen_random_uuid(), 'here (cpu)', '{}', '{}')")
        )
    assert health("worker-cpu", env) == 0
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '1 minute'"))
    assert health("worker-cpu", env) == 1


def test_a_control_worker_is_healthy_while_no_lease_is_long_expired(database: Engine, farm_env: dict[str, str]) -> None:
    assert health("control", farm_env) == 0
    with database.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO leases (id, worker_id, image_ids, expires_at)"
                " VALUES (gen_random_uuid(), gen_random_uuid(), '{}', now() - interval '2 minutes')"
            )
        )
    assert health("control", farm_env) == 1


def test_an_api_that_does_not_answer_is_unhealthy(farm_env: dict[str, str]) -> None:
    assert health("api", farm_env) == 1
