"""A tenant is erased: nothing of it is left but its usage and its tombstones, and its neighbour loses nothing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from common.accounts import ended_sessions, tenants
from common.accounts.tenants import OPERATOR
from common.broker import Broker
from common.config import Settings
from common.db import new_id, transaction
from common.deletion import erasure, ownership, rows
from common.errors import Unavailable
from common.schema import metadata
from common.sentences import Sentence
from common.storage import Storage, dataset_key
from tests.support.batch_stories import BatchStory
from tests.support.command_line import CommandLine
from tests.support.serving import EVERYTHING, PROMPT, Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import bucket_of, until
from worker.control import eraser
from worker.control.sweep import Sweep
from worker.datasets.exporter import Exporter

pytestmark = pytest.mark.timeout(180)

LIMITS = {"limits": {"images_a_day": 1000, "stored_bytes": 10**9}}
PROMPT_OF_SHOP = "只有这家店才有的提示词"


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": 0.2, "sweep_s": 0.05})


@pytest.fixture
def story(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def sweep(quick: Settings, story: BatchStory) -> Sweep:
    return Sweep(quick, story.database, Broker(quick), Storage(quick))


@pytest.fixture
def shop(operator: httpx.Client) -> str:
    """The id of a tenant."""
    return str(operator.post("/v1/tenants", json={"name": "shop", **LIMITS}).json()["id"])


def render(story: BatchStory) -> None:
    """Render all that waits."""
    while microbatch := story.claim(capacity=4):
        story.start(microbatch)
        for image in microbatch.images:
            story.storage.put(story.outcome(image, microbatch.lease_id).key or "", b"x", "image/png")
        story.publish(microbatch)


def fill(story: BatchStory, api: Api, sweep: Sweep, tenant: str) -> None:
    """Give a tenant something of all that one can have."""
    text_file = {"Content-Type": "text/plain"}
    with api.client(tenant, EVERYTHING) as client:
        key_id = story.rows("SELECT id FROM api_keys ORDER BY id DESC LIMIT 1")[0].id
        job = client.post("/v1/jobs", json={**PROMPT, "prompt": PROMPT_OF_SHOP}, headers={"Idempotency-Key": "once"})
        gone = client.post("/v1/jobs", json=PROMPT).json()["id"]
        client.post(f"/v1/jobs/{job.json()['id']}/cancel").raise_for_status()
        client.post("/v1/jobs", json=PROMPT | {"count": 6}).raise_for_status()
        client.post("/v1/uploads", content=PROMPT_OF_SHOP.encode(), headers=text_file).raise_for_status()
        client.post("/v1/models/taiyi/licence", json={"version": "2022-08-22"}).raise_for_status()
        batch = client.post("/v1/batches", json={"prompts": [PROMPT_OF_SHOP], "defaults": {"model": "mini-zh"}}).json()
        story.expander.work(UUID(batch["id"]), 60)
        render(story)
        story.end()
        dataset = client.post("/v1/datasets", json={"batch": batch["id"]}).json()["id"]
        Exporter(story.database, story.storage, CATALOG).work(UUID(dataset), 60)
        sweep.count_bytes()
        client.delete(f"/v1/jobs/{gone}").raise_for_status()
        with transaction(story.database) as connection:
            ended_sessions.end(connection, key_id, datetime.now(UTC), 60)
            connection.execute(
                text("INSERT INTO skipped_lines (batch_id, line, reason) VALUES (:batch, 1, 'a line')"),
                {"batch": batch["id"]},
            )
        last = client.post("/v1/jobs", json=PROMPT).json()["id"]
        with story.database.connect() as connection:
            connection.execute(text("SELECT FROM lanes FOR UPDATE"))  # so that what ends is counted later
            story.cancel(UUID(last))


def left_of(story: Story, tenant_id: object) -> dict[str, int]:
    with transaction(story.database) as connection:
        left = ownership.count_left(connection, UUID(str(tenant_id)))
    return {table: count for table, count in left.items() if count}


def rows_of(story: Story, tenant_id: UUID) -> dict[str, Any]:
    """All that a tenant has, without what the sweep changes by itself."""
    moved = {"objects_to_delete", "lane_changes", "usage_entries", "lanes", "stored_bytes"}
    theirs = [*ownership.ERASED.items(), *((table, kept.rows) for table, kept in ownership.KEPT.items())]
    found = dict[str, list[str]]()
    for table, source in (one for one in theirs if one[0] not in moved):
        read = story.rows(f"SELECT to_jsonb({table}) AS row FROM {source}", tenant=tenant_id, most=10_000)
        found.setdefault(table, []).extend(sorted(str(row.row) for row in read))
    return found


def let_time_pass(story: Story, tenant_id: str) -> None:
    """As if the uploads of a tenant had been made long ago, and what waits before it is deleted again had waited."""
    with story.database.begin() as connection:
        long_ago = "UPDATE uploads SET created_at = now() - interval '1 day' WHERE tenant_id = :tenant"
        connection.execute(text(long_ago), {"tenant": tenant_id})
        connection.execute(text("UPDATE objects_to_delete SET due_at = now()"))


def advance(story: BatchStory, sweep: Sweep) -> None:
    for batch in story.rows("SELECT id FROM batches WHERE cancelled_at IS NOT NULL AND finished_at IS NULL"):
        story.expander.work(batch.id, 60)
    sweep.once()
    sweep.clean()
    sweep.delete()


def erase(operator: httpx.Client, tenant_id: str) -> Any:
    operator.post(f"/v1/tenants/{tenant_id}/suspend").raise_for_status()
    return operator.post(f"/v1/tenants/{tenant_id}/erase").raise_for_status().json()


def is_finished(operator: httpx.Client, tenant_id: str) -> bool:
    return bool(operator.get(f"/v1/tenants/{tenant_id}/erasure").json()["finished_at"])


def until_finished(operator: httpx.Client, story: BatchStory, sweep: Sweep, tenant_id: str) -> Any:
    def finished() -> bool:
        advance(story, sweep)
        return is_finished(operator, tenant_id)

    until(finished)
    return operator.get(f"/v1/tenants/{tenant_id}/erasure").json()


def test_every_table_that_has_something_of_a_tenant_is_named() -> None:
    """Those with a key to one that is named, and those whose columns are called like one."""
    theirs = {"tenants"}

    def refers(table: Any) -> bool:
        names = {column.name.removesuffix("_id") for column in table.columns if column.name.endswith("_id")}
        by_name = {f"{name}{ending}" for name in names for ending in ("s", "es")}
        by_name |= {"api_keys"} if "key" in names else set()
        by_key = {key.column.table.name for column in table.columns for key in column.foreign_keys}
        return bool((by_name | by_key) & theirs)

    while more := {name for name, table in metadata.tables.items() if refers(table)} - theirs:
        theirs |= more
    assert theirs == set(ownership.ERASED) | set(ownership.KEPT)


def test_nothing_is_left_but_usage_and_tombstones_and_the_neighbour_loses_nothing(
    api: Api, operator: httpx.Client, story: BatchStory, sweep: Sweep, settings: Settings, shop: str
) -> None:
    neighbour = UUID(operator.post("/v1/tenants", json={"name": "neighbour", **LIMITS}).json()["id"])
    fill(story, api, sweep, "neighbour")
    for _ in range(3):
        advance(story, sweep)
    theirs, bucket = rows_of(story, neighbour), bucket_of(settings)
    fill(story, api, sweep, "shop")
    assert set(ownership.ERASED) - set(left_of(story, shop)) == set()
    used = story.rows("SELECT sum(images) AS images FROM usage_entries WHERE tenant_id = :t", t=shop)[0].images
    secrets = [row.digest for row in story.rows("SELECT digest FROM api_keys WHERE tenant_id = :t", t=shop)]

    let_time_pass(story, shop)
    begun = erase(operator, shop)
    assert (begun["tenant_id"], begun["finished_at"], begun["bucket"]) == (shop, None, None)
    assert begun["left"]["jobs"] > 0
    done = until_finished(operator, story, sweep, shop)
    assert set(done["left"].values()) == {0}
    assert (done["bucket"]["objects"], done["bucket"]["unnamed"]) == (len(bucket), 0)
    assert {kept["table"]: kept["rows"] for kept in done["kept"]} == {
        "tenants": 1, "api_keys": 1, "usage_days": 2, "tombstones": 1, "lanes": 2, "audit": 1,
    }  # fmt: skip

    assert bucket_of(settings) == bucket
    assert rows_of(story, neighbour) == theirs
    assert story.balances()
    dump = str([story.rows(f"SELECT * FROM {table} WHERE tenant_id = :t", t=shop) for table in KEPT_OF_TENANT])
    assert "shop" not in dump
    assert PROMPT_OF_SHOP not in dump
    (tenant,) = story.rows("SELECT * FROM tenants WHERE id = :t", t=shop)
    assert (tenant.name, tenant.limits, tenant.suspended_at is None) == (shop, {}, False)
    (total,) = story.rows("SELECT sum(images) AS images FROM usage_days WHERE tenant_id = :t", t=shop)
    assert total.images == used
    assert story.rows("SELECT id FROM api_keys WHERE digest = ANY(:d)", d=secrets) == []
    (dead,) = story.rows("SELECT finished_at FROM tombstones WHERE tenant_id = :t", t=shop)
    assert dead.finished_at

    (record,) = operator.get("/v1/audit?limit=1").json()["items"]
    assert (record["action"], record["subject"], record["acted_on"]) == ("tenant.erase", shop, shop)
    (key,) = story.rows("SELECT id FROM api_keys WHERE tenant_id = :t", t=shop)
    for by, name in (("key", str(key.id)), ("tenant", shop)):
        assert f'"{by}":"{name}"' in operator.get(f"/v1/usage?all_tenants=true&by={by}").text


KEPT_OF_TENANT = ("api_keys", "usage_days", "tombstones", "lanes", "audit")


def test_what_is_being_rendered_is_not_stored_and_its_bytes_are_deleted(
    api: Api, operator: httpx.Client, story: BatchStory, sweep: Sweep, settings: Settings, shop: str
) -> None:
    story.submit("shop", count=2)
    held = story.started(capacity=1)
    key = story.outcome(held.images[0], held.lease_id).key or ""
    erase(operator, shop)
    for _ in range(3):
        advance(story, sweep)
    assert left_of(story, shop) == {"objects_to_delete": 1}
    story.storage.put(key, b"x", "image/png")  # of a worker that does not know yet
    assert story.renew(held) == {held.lease_id: frozenset()}
    assert not story.publish(held).images
    done = until_finished(operator, story, sweep, shop)
    assert (done["bucket"], bucket_of(settings)) == ({"objects": 0, "unnamed": 0, "keys": []}, {})
    assert story.balances()


def test_a_control_worker_that_dies_is_followed_by_another(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, shop: str, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        story.submit("shop")
    story.expanded(tenant="shop")
    render(story)
    story.submit("neighbour")
    render(story)
    let_time_pass(story, shop)
    erase(operator, shop)
    monkeypatch.setattr(erasure, "STEP_JOBS", 1)
    delete_jobs, calls = rows.delete_jobs, list[int]()

    def dies(*arguments: Any) -> int:
        done = delete_jobs(*arguments)
        calls.append(done)
        if len(calls) % 2 == 0:
            raise SystemExit  # it is killed before the COMMIT
        return done

    with monkeypatch.context() as patched:
        patched.setattr(rows, "delete_jobs", dies)
        for left in (3, 2):
            with pytest.raises(SystemExit):
                Sweep(quick, story.database, Broker(quick), Storage(quick)).delete()
            assert story.count("jobs WHERE batch_id IS NULL") == left + 1
    assert story.balances()
    done = until_finished(operator, story, sweep, shop)
    assert (set(done["left"].values()), done["bucket"]) == ({0}, {"objects": 1, "unnamed": 0, "keys": []})
    assert story.count("jobs") == 1


def test_a_listing_that_is_broken_off_begins_anew(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, shop: str, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.submit("neighbour", count=5)
    render(story)
    erase(operator, shop)
    monkeypatch.setattr(eraser, "LISTED", 2)
    list_objects, calls = Storage.list_objects, list[str]()

    def few(storage: Storage, prefix: str, after: str = "", limit: int = 2) -> Any:
        calls.append(after)
        if len(calls) == 2:
            raise Unavailable(Sentence("away", "away", {}))
        return list_objects(storage, prefix, after, limit)

    monkeypatch.setattr(Storage, "list_objects", few)
    sweep._deleter.delete_rows_of_erased()
    with suppress(Unavailable):
        sweep._deleter.list_for_erased()
    assert (len(calls), is_finished(operator, shop)) == (2, False)
    Sweep(quick, story.database, Broker(quick), Storage(quick)).delete()
    assert operator.get(f"/v1/tenants/{shop}/erasure").json()["bucket"]["objects"] == 5


def test_what_no_row_names_is_told_and_listed_again_once_it_is_gone(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, shop: str
) -> None:
    stray = dataset_key(new_id(), "SHA256SUMS")
    for key in (stray, "images/trial", "farm-id.json"):
        story.storage.put(key, b"x", "text/plain")
    erase(operator, shop)
    done = until_finished(operator, story, sweep, shop)
    assert done["bucket"] == {"objects": 1, "unnamed": 1, "keys": [stray]}
    story.storage.delete([stray])
    assert operator.post(f"/v1/tenants/{shop}/erase").json()["finished_at"] is None
    assert until_finished(operator, story, sweep, shop)["bucket"]["unnamed"] == 0


def test_what_comes_late_goes_too(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, quick: Settings, shop: str
) -> None:
    """A request that was on its way, and what an older API does that knows no erasure."""
    erase(operator, shop)
    until_finished(operator, story, sweep, shop)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE tenants SET name = 'shop', suspended_at = NULL WHERE id = :id"), {"id": shop})
    story.upload(b"late", tenant="shop")
    let_time_pass(story, shop)
    sweep._deleter.delete_rows_of_erased()
    assert not is_finished(operator, shop)
    until_finished(operator, story, sweep, shop)
    assert operator.get(f"/v1/tenants/{shop}").json()["suspended_at"]
    limited = quick.model_copy(update={"limit_stored_bytes": 1000})
    Sweep(limited, story.database, Broker(quick), Storage(quick)).count_bytes()
    assert left_of(story, shop) == {}


def test_what_waits_to_be_deleted_of_a_neighbour_is_not_its(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, settings: Settings, shop: str
) -> None:
    neighbour = story.tenant("neighbour")
    story.submit("neighbour")
    render(story)
    with story.database.begin() as connection:
        connection.execute(text("UPDATE tenants SET keep_pictures_days = 1 WHERE id = :t"), {"t": neighbour})
        connection.execute(text("UPDATE images SET finished_at = now() - interval '2 days'"))
    sweep.once()
    sweep._deleter.delete_old_pictures()
    with story.database.begin() as connection:
        connection.execute(text("UPDATE objects_to_delete SET due_at = now() + interval '1 day'"))
        connection.execute(text("DELETE FROM images"))
        connection.execute(text("DELETE FROM jobs"))
    erase(operator, shop)
    done = until_finished(operator, story, sweep, shop)
    assert (done["bucket"], len(bucket_of(settings))) == ({"objects": 1, "unnamed": 0, "keys": []}, 1)
    assert left_of(story, neighbour)["objects_to_delete"] == 1


def test_an_upload_that_is_being_stored_is_deleted_once_more(
    operator: httpx.Client, story: BatchStory, sweep: Sweep, settings: Settings, shop: str
) -> None:
    story.upload(b"late", tenant="shop")
    ((key, data),) = bucket_of(settings).items()
    erase(operator, shop)
    advance(story, sweep)
    assert bucket_of(settings) == {}
    story.storage.put(key, data, "text/plain")
    assert left_of(story, shop) == {"objects_to_delete": 1}
    let_time_pass(story, shop)
    until_finished(operator, story, sweep, shop)
    assert bucket_of(settings) == {}


def test_only_a_suspended_tenant_is_erased_and_for_good(api: Api, operator: httpx.Client, story: Story) -> None:
    shop = operator.post("/v1/tenants", json={"name": "shop", "key": "admin"}).json()
    path = f"/v1/tenants/{shop['id']}"
    assert operator.get(f"{path}/erasure").status_code == 404
    assert operator.post(f"/v1/tenants/{new_id()}/erase").status_code == 404
    assert operator.post(f"{path}/erase").json()["detail"].startswith("Only a suspended tenant")
    for name in ("somebody", OPERATOR):
        tenant_id = story.tenant(name)
        with transaction(story.database) as connection:
            tenants.suspend(connection, tenant_id)
        if name == "somebody":
            with transaction(story.database) as connection:
                tenants.resume(connection, tenant_id)
        assert operator.post(f"/v1/tenants/{tenant_id}/erase").status_code == 409

    first = erase(operator, shop["id"])
    again = operator.post(f"{path}/erase")
    assert (again.status_code, again.json()["erased_at"]) == (202, first["erased_at"])
    for method, action, body in (
        ("POST", "/resume", None),
        ("PATCH", "", {"weight": 2}),
        ("POST", "/keys", {"name": "a key", "scopes": ["admin"]}),
    ):
        answer = operator.request(method, f"{path}{action}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict"), action
    with api.stranger(headers={"Authorization": f"Bearer {shop['key']['secret']}"}) as client:
        assert client.get("/v1/jobs").status_code == 401
    assert [row.action for row in story.rows("SELECT action FROM audit WHERE action = 'tenant.erase'")] == [
        "tenant.erase"
    ]


def test_what_an_erased_operator_did_to_others_is_still_recorded(
    api: Api, operator: httpx.Client, story: BatchStory, sweep: Sweep, shop: str
) -> None:
    theirs = story.submit("neighbour")
    with api.client("shop", EVERYTHING) as client:
        client.post(f"/v1/jobs/{theirs}/cancel?all_tenants=true").raise_for_status()
        client.post("/v1/keys", json={"name": "of the shop", "scopes": ["viewer"]}).raise_for_status()
    erase(operator, shop)
    until_finished(operator, story, sweep, shop)
    records = operator.get("/v1/audit?all_tenants=true").json()["items"]
    assert [(one["action"], one["tenant"], one["acted_on"]) for one in records] == [
        ("tenant.erase", "somebody", shop),
        ("job.cancel", shop, "neighbour"),
    ]
    assert records[1]["key"] == records[1]["key_id"]


# The command line


@contextmanager
def sweeping(story: BatchStory, sweep: Sweep) -> Iterator[None]:
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(0.05):
            advance(story, sweep)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(60)


def test_by_the_command_line(
    api: Api, operator: httpx.Client, story: BatchStory, sweep: Sweep, shop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    key = operator.headers["Authorization"].removeprefix("Bearer ")

    def call(*arguments: str, format: str = "json") -> Any:
        return CommandLine(capsys)(*arguments, "--format", format, "--url", api.url, "--key", key)

    story.submit("shop", count=3)
    render(story)
    assert call("tenants", "erase", "shop", "--yes").code == 5
    assert call("tenants", "suspend", "shop").code == 0
    refused = call("tenants", "erase", "shop")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert left_of(story, shop)["images"] == 3
    with sweeping(story, sweep):
        done = call("tenants", "erase", "shop", "--yes", "--wait")
    assert (done.code, set(done.json["left"].values()), done.json["bucket"]["unnamed"]) == (0, {0}, 0)
    assert call("tenants", "erase", "shop", "--yes").code == 4
    assert call("tenants", "show", shop).json["erasure_finished_at"]
    shown = call("tenants", "erase", shop, "--yes", "--wait", format="human")
    assert shown.code == 0
    assert "usage_days" in shown.out
    assert "objects in the bucket" in shown.out
