"""The API as an object: what it loads, and what it documents."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from api import schemas
from api.app import create_app
from api.headers import seconds_to_wait
from api.pagination import write_cursor
from api.queries import batches, fleet
from api.queries.erasures import Erasure
from api.queries.keys import KeyWithSecret
from api.routes import health, jobs, keys, models, queue, uploads, workers
from api.routes.audit import AuditPage
from api.routes.batches import BatchPage, TierChange
from api.routes.tenants import Tenants
from api.services.batch_request import EXAMPLES, BatchRequest
from api.services.jobs import DryRun
from api.services.tenants import CreatedTenant
from common.config import Settings
from common.errors import Invalid


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(s3_endpoint_url="http://127.0.0.1:1", s3_access_key="x", s3_secret_key="x")).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_api_loads_neither_torch_nor_the_worker_nor_what_only_migrations_need() -> None:
    code = "import sys, api.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "fastapi" in loaded
    assert {"torch", "diffusers", "transformers", "numpy", "worker", "alembic", "PIL"} & set(loaded) == set()


def test_every_route_has_a_summary_a_name_and_an_example(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name[0].islower() for name in names)
    for route, operation in operations(document):
        assert operation["summary"], route
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type == "application/json":
                    assert shown(document, content["schema"]), (route, status)
                elif status[0] in "45":
                    assert media_type == "application/problem+json", route


def shown(document: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Whether a reader of the documentation sees an example of this."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf", [])
    return bool(schema.get("examples") or (choices and all(shown(document, choice) for choice in choices)))


@pytest.mark.parametrize(
    "shape",
    [
        schemas.Job,
        schemas.ImageWithJob,
        schemas.JobPage,
        DryRun,
        batches.Batch,
        BatchPage,
        TierChange,
        uploads.Upload,
        health.Alive,
        health.Ready,
        models.Models,
        queue.Queue,
        fleet.Worker,
        workers.Workers,
        keys.Keys,
        KeyWithSecret,
        Tenants,
        CreatedTenant,
        Erasure,
        AuditPage,
    ],
)
def test_examples_are_of_their_shape(shape: type[Any]) -> None:
    for example in TypeAdapter(shape).json_schema(mode="serialization")["examples"]:
        shown = shape.model_validate(without_computed(example)).model_dump(by_alias=True)
        assert set(shown) == set(example)


def without_computed(value: Any) -> Any:
    """A recipe says its count, which follows from its seeds."""
    if isinstance(value, dict):
        is_recipe = "seeds" in value
        return {k: without_computed(v) for k, v in value.items() if not (is_recipe and k == "count")}
    return [without_computed(one) for one in value] if isinstance(value, list) else value


def test_examples_of_submissions_are_submissions() -> None:
    for example in jobs.EXAMPLES.values():
        assert schemas.JobRequest.model_validate(example["value"])
    for example in EXAMPLES.values():
        assert BatchRequest.model_validate(example["value"])


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("respond-async", 0),
        ("wait=1", 1),
        ("wait=60", 60),
        ("respond-async, wait = 5", 5),
        ("Wait=7; foo=bar", 7),
        ('wait="9"', 9),
        ("return=minimal;wait=3", 0),
    ],
)
def test_a_preference_to_wait_is_read(prefer: str | None, seconds: int) -> None:
    assert seconds_to_wait(prefer) == seconds


@pytest.mark.parametrize(
    "prefer", ["wait=", "wait=0", "wait=61", "wait=1.5", "wait=-1", "wait=²", "wait=001", "wait=9" * 2]
)
def test_a_preference_that_makes_no_sense_is_refused(prefer: str) -> None:
    with pytest.raises(Invalid, match="Prefer"):
        seconds_to_wait(prefer)


def test_an_unknown_default_model_is_an_error_at_once() -> None:
    with pytest.raises(Invalid, match="sd-9"):
        create_app(Settings(default_model="sd-9"))


def test_a_cursor_is_read_as_it_was_written() -> None:
    job_id = schemas.Job.model_validate(without_computed(schemas.JOB)).id
    assert schemas.JobQuery(cursor=write_cursor(job_id)).before == job_id


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no heaps of threads")
def test_the_threads_of_the_api_share_two_heaps(tmp_path: Path) -> None:
    """Each heap keeps what its largest request needed: with 40 threads that was 60 MB after a flood."""
    code = f"""
import ctypes, threading
from api.__main__ import share_memory
share_memory()
together = threading.Barrier(16)
def work():
    kept = [bytearray(100_000) for _ in range(10)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"{tmp_path}/heaps", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "heaps").read_text().count("<heap nr=") <= 2
