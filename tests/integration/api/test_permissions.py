"""Who may do what: every operation of the OpenAPI document with every kind of key.

A new operation needs an entry in the table: without one these tests fail.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx
import pytest

from common.accounts import keys, tenants
from common.db import new_id, transaction
from common.enums import Scope
from tests.support.serving import EVERYTHING, PROMPT, Api
from tests.support.stories import Story

Needed = Scope | frozenset[Scope] | Literal["open", "a key"]  # a set: one of them

# What each operation needs, by its id. The table is what is promised, not what the code says.
NEEDED: dict[str, Needed] = {
    "submitJob": Scope.JOBS_WRITE,
    "listJobs": Scope.JOBS_READ,
    "readJob": Scope.JOBS_READ,
    "cancelJob": Scope.JOBS_WRITE,
    "changeTier": Scope.JOBS_WRITE,
    "retryJob": Scope.JOBS_WRITE,
    "followJob": Scope.JOBS_READ,
    "uploadFile": Scope.BATCHES_WRITE,
    "submitBatch": Scope.BATCHES_WRITE,
    "listBatches": Scope.JOBS_READ,
    "readBatch": Scope.JOBS_READ,
    "pauseBatch": Scope.BATCHES_WRITE,
    "changeBatchTier": Scope.BATCHES_WRITE,
    "resumeBatch": Scope.BATCHES_WRITE,
    "cancelBatch": Scope.BATCHES_WRITE,
    "retryFailedOfBatch": Scope.BATCHES_WRITE,
    "submitDataset": Scope.DATASETS_WRITE,
    "listDatasets": Scope.JOBS_READ,
    "readDataset": Scope.JOBS_READ,
    "listFiles": Scope.JOBS_READ,
    "readImage": Scope.JOBS_READ,
    "readImageContent": Scope.JOBS_READ,
    "readImageThumbnail": Scope.JOBS_READ,
    "listModels": "a key",
    "listStyles": "a key",
    "acceptLicence": Scope.JOBS_WRITE,
    "readQueue": Scope.VIEWER,
    "listWorkers": Scope.VIEWER,
    "drainWorker": Scope.OPERATOR,
    "resumeWorker": Scope.OPERATOR,
    "liftQuarantine": Scope.OPERATOR,
    "createTenant": Scope.OPERATOR,
    "listTenants": Scope.OPERATOR,
    "readTenant": Scope.OPERATOR,
    "changeTenant": Scope.OPERATOR,
    "suspendTenant": Scope.OPERATOR,
    "resumeTenant": Scope.OPERATOR,
    "eraseTenant": Scope.OPERATOR,
    "readErasure": Scope.OPERATOR,
    "createKeyOfTenant": Scope.OPERATOR,
    "createKey": Scope.ADMIN,
    "listKeys": Scope.ADMIN,
    "revokeKey": Scope.ADMIN,
    "readAudit": Scope.ADMIN,
    "readLimits": "a key",
    "readUsage": frozenset({Scope.VIEWER, Scope.JOBS_READ}),
    "readHealth": "open",
    "readMetrics": "open",
    "readReadiness": "open",
    "deleteImage": Scope.JOBS_WRITE,
    "deleteJob": Scope.JOBS_WRITE,
    "deleteDataset": Scope.DATASETS_WRITE,
    "deleteBatch": Scope.BATCHES_WRITE,
    "deleteUpload": frozenset({Scope.JOBS_WRITE, Scope.BATCHES_WRITE}),
}

# What is sent where `{}` would be refused before anything is looked up.
BODIES: dict[str, dict[str, Any]] = {
    "uploadFile": {"content": "猫", "headers": {"Content-Type": "text/plain"}},
    "changeTier": {"json": {"tier": "bulk"}},
    "changeBatchTier": {"json": {"tier": "bulk"}},
    "createKeyOfTenant": {"json": {"name": "a key", "scopes": ["jobs:read"]}},
}

# The ids in paths that are a tenant's own: another tenant gets 404 for them.
OWN = {"job_id", "image_id", "batch_id", "dataset_id", "upload_id", "key_id"}

# With the switch `all_tenants`, what suffices beside `operator`.
ALL_TENANTS = {
    "listJobs": Scope.JOBS_READ,
    "readJob": Scope.JOBS_READ,
    "cancelJob": Scope.JOBS_WRITE,
    "readAudit": None,
    "readUsage": None,
}
SUMS = {"readUsage"}  # which name nobody


def verdict(answer: httpx.Response) -> str:
    """`allowed`, `hidden` (404), or the code of the refusal."""
    if answer.status_code in (401, 403):
        return str(answer.json()["code"])
    return "hidden" if answer.status_code == 404 else "allowed"


def implied(scope: Scope) -> set[Scope]:
    if scope == Scope.ADMIN:
        return set(Scope) - {Scope.OPERATOR}
    return {scope, Scope.VIEWER} if scope == Scope.OPERATOR else {scope}


def expected(operation: str, scope: Scope) -> str:
    """For a key of one scope, of a tenant that has what the path names."""
    needed = NEEDED[operation]
    if needed in ("open", "a key") or (needed if isinstance(needed, frozenset) else {needed}) & implied(scope):
        return "allowed"
    return "operator_needed" if needed == Scope.OPERATOR else "forbidden"


def unless_busy(send: Callable[[], httpx.Response]) -> httpx.Response:
    """The answer, once the farm is not too busy to begin: 503 says nothing about what the key may do."""
    for _ in range(50):
        if (answer := send()).status_code != 503:
            return answer
    raise AssertionError(answer.text)


class Operations:
    """Those of the document, with the ids of things that a tenant has."""

    def __init__(self, document: Mapping[str, Any], ids: Mapping[str, object]) -> None:
        self.of = {
            operation["operationId"]: (method, path, {one["name"] for one in operation.get("parameters", [])})
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
        }
        self.ids = ids

    def call(self, client: httpx.Client, operation: str, **params: str) -> httpx.Response:
        method, path, _ = self.of[operation]
        body = BODIES.get(operation, {} if method in ("get", "delete") else {"json": {}})
        url = path.format(**self.ids)
        return unless_busy(lambda: client.request(method, url, params=params, **body))

    def names_own(self, operation: str) -> bool:
        return bool(OWN & set(re.findall(r"{(\w+)}", self.of[operation][1])))


@pytest.fixture
def operations(api: Api, client: httpx.Client, story: Story) -> Operations:
    """Of things of the tenant `somebody`; the worker and the quarantine are of nobody. The job has ended: it has a
    stream with an end.
    """

    def post(path: str, body: Any = None) -> Any:
        return unless_busy(lambda: client.post(path, json=body)).raise_for_status().json()

    job = post("/v1/jobs", PROMPT)
    post(f"/v1/jobs/{job['id']}/cancel")
    batch = post("/v1/batches", {"prompts": ["猫"]})["id"]
    dataset = post("/v1/datasets", {"batch": batch})["id"]
    uploaded = unless_busy(lambda: client.post("/v1/uploads", content="猫", headers={"Content-Type": "text/plain"}))
    upload = uploaded.raise_for_status().json()["id"]
    key = post("/v1/keys", {"name": "to be revoked", "scopes": ["jobs:read"]})["id"]
    ids = {
        "job_id": job["id"],
        "image_id": job["images"][0]["id"],
        "batch_id": batch,
        "dataset_id": dataset,
        "upload_id": upload,
        "key_id": key,
        "worker_id": new_id(),
        "tenant_id": story.tenant("a third"),
        "name": "mini-zh",
    }
    return Operations(client.get("/openapi.json").json(), ids)


def test_every_operation_has_an_entry(operations: Operations) -> None:
    assert set(NEEDED) == set(operations.of)
    assert set(ALL_TENANTS) == {name for name, (*_, params) in operations.of.items() if "all_tenants" in params}


@pytest.mark.parametrize("scope", Scope)
def test_a_key_of_one_scope(api: Api, operations: Operations, scope: Scope) -> None:
    wrong = []
    with api.client(scopes=[scope]) as client:
        for operation in NEEDED:
            found = verdict(operations.call(client, operation))
            if (found if found != "hidden" else "allowed") != expected(operation, scope):
                wrong.append((operation, found))
    assert wrong == []


def test_no_key_an_expired_one_and_that_of_a_suspended_tenant(api: Api, operations: Operations, story: Story) -> None:
    with transaction(api.database) as connection:
        an_hour_ago, pepper = datetime.now(UTC) - timedelta(hours=1), api.settings.key_pepper.get_secret_value()
        old = keys.create_key(connection, story.tenant(), "an old key", EVERYTHING, pepper, an_hour_ago)
        tenants.suspend(connection, story.tenant("suspended"))
    wrong = []
    with (
        api.stranger() as stranger,
        api.stranger(headers={"Authorization": f"Bearer {old.secret}"}) as expired,
        api.client("suspended", EVERYTHING) as suspended,
    ):
        kinds = ((stranger, "unauthorized"), (expired, "unauthorized"), (suspended, "tenant_suspended"))
        for operation, needed in NEEDED.items():
            for client, refusal in kinds:
                found = verdict(operations.call(client, operation))
                if found != ("allowed" if needed == "open" else refusal):
                    wrong.append((operation, refusal, found))
        assert "expired at" in operations.call(expired, "listJobs").json()["detail"]
        assert "expired" not in operations.call(stranger, "listJobs").json()["detail"]
    assert wrong == []


@pytest.mark.parametrize("scopes", [[Scope.ADMIN], EVERYTHING], ids=["admin", "operator"])
def test_another_tenant_sees_nothing(api: Api, operations: Operations, scopes: list[Scope]) -> None:
    wrong, own = [], {str(operations.ids[name]) for name in OWN}
    with api.client("another", scopes) as other:
        for operation, needed in NEEDED.items():
            answer = operations.call(other, operation)
            if needed == Scope.OPERATOR and Scope.OPERATOR not in scopes:
                right = {"operator_needed"}
            elif operations.names_own(operation):
                right = {"hidden"}
            else:
                right = {"allowed", "hidden"}
            shown = any(one in answer.text for one in own) and not operations.names_own(operation)
            if verdict(answer) not in right or shown:
                wrong.append((operation, answer.status_code, answer.text))
    assert wrong == []


def test_all_tenants_are_for_operators_only(api: Api, operations: Operations) -> None:
    wrong = []
    for operation, beside in ALL_TENANTS.items():
        enough = [Scope.OPERATOR, *([beside] if beside else [])]
        all_but_that: list[Scope] = [scope for scope in Scope if scope != Scope.OPERATOR]
        cases: list[tuple[list[Scope], str]] = [(all_but_that, "operator_needed"), (enough, "allowed")]
        cases += [([Scope.OPERATOR], "forbidden")] if beside else []
        for scopes, right in cases:
            with api.client("another", scopes) as client:
                answer = operations.call(client, operation, all_tenants="true")
            shown = operation in SUMS or '"tenant":"somebody"' in answer.text
            if verdict(answer) != right or (right == "allowed" and not shown):
                wrong.append((operation, scopes, answer.text))
    assert wrong == []
