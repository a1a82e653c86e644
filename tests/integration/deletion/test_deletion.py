"""What is deleted by its id is hidden at once, says that it was deleted, and leaves no row and no byte behind."""

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from common.broker import Broker
from common.config import Settings
from common.enums import Scope
from common.errors import Unavailable
from common.sentences import Sentence
from common.storage import Storage
from tests.support.serving import Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, bucket_of, until
from worker.control import deleter
from worker.control.batch_expander import Expander
from worker.control.deleter import Deleter
from worker.control.sweep import Sweep
from worker.datasets.exporter import Exporter

LOOK = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
PROMPTS = [f"红色的圆形，第{n}幅" for n in range(6)]
LEASE_S = 0.2

Render = Callable[[], None]
Submit = Callable[..., Any]


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease_s": LEASE_S, "sweep_s": 0.05})


@pytest.fixture
def sweep(quick: Settings, story: Story) -> Sweep:
    return Sweep(quick, story.database, Broker(quick), Storage(quick))


@pytest.fixture
def render(make_worker: MakeWorker, story: Story) -> Render:
    worker = make_worker()
    worker.loop.start()

    def render() -> None:
        while story.rows("SELECT FROM images WHERE state IN ('queued', 'running') LIMIT 1"):
            worker.loop.run()

    return render


@pytest.fixture
def job(client: httpx.Client, render: Render) -> Any:
    """A rendered job of two images."""
    made = client.post("/v1/jobs", json={"prompt": "红色的圆形", "count": 2, **LOOK}).json()
    render()
    return client.get(f"/v1/jobs/{made['id']}").json()


@pytest.fixture
def expand(story: Story, settings: Settings) -> Callable[[str], None]:
    expander = Expander(story.database, Storage(settings), Broker(settings), CATALOG)

    def expand(batch_id: str) -> None:
        expander.work(UUID(batch_id), 60)

    return expand


@pytest.fixture
def submit(client: httpx.Client, expand: Callable[[str], None]) -> Submit:
    def submit(prompts: list[str] = PROMPTS, **fields: Any) -> Any:
        body = {"prompts": prompts, "defaults": LOOK, "images_per_prompt": 2, "seed": 7, **fields}
        batch = client.post("/v1/batches", json=body).json()
        expand(batch["id"])
        return batch

    return submit


@pytest.fixture
def batch(client: httpx.Client, submit: Submit, render: Render, sweep: Sweep) -> Any:
    """A rendered batch that has ended."""
    made = submit()
    render()
    sweep.once()
    batch = client.get(f"/v1/batches/{made['id']}").json()
    assert batch["finished_at"]
    return batch


def gone(client: httpx.Client, path: str) -> Any:
    """The tombstone at that path."""
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (410, "gone"), answer.text
    return answer.json()["tombstone"]


def statuses(client: httpx.Client, *paths: str) -> set[int]:
    return {client.get(path).status_code for path in paths}


def pictures(settings: Settings) -> set[str]:
    return {key for key in bucket_of(settings) if key.startswith("images/")}


def images_of(job: Any) -> list[str]:
    return [f"/v1/images/{image['id']}" for image in job["images"]]


def has_nothing_left(story: Story, *tables: str) -> bool:
    return not any(story.count(table) for table in (*tables, "objects_to_delete"))


def test_a_job_is_hidden_at_once_and_leaves_a_tombstone(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, job: Any
) -> None:
    path, images = f"/v1/jobs/{job['id']}", images_of(job)
    assert client.delete(path).status_code == 204
    tombstone = gone(client, path)
    assert (tombstone["id"], tombstone["kind"], tombstone["pictures_left"]) == (job["id"], "job", 2)
    assert tombstone["finished_at"] is None
    assert statuses(client, *images, *(f"{image}/content" for image in images)) == {404}
    assert client.get("/v1/jobs").json()["items"] == []
    assert client.get("/v1/jobs", params={"q": "红色"}).json()["items"] == []
    assert client.post(f"{path}/retry").status_code == client.post(f"{path}/cancel").status_code == 410
    assert len(pictures(settings)) == 2

    sweep.delete()
    assert pictures(settings) == set()
    tombstone = gone(client, path)
    assert tombstone["pictures_left"] == 0
    assert tombstone["finished_at"]
    assert client.delete(path).status_code == 204
    assert gone(client, path) == tombstone
    assert has_nothing_left(story, "jobs", "images")
    assert story.balances()


def test_what_never_was_is_not_found_and_anothers_is_neither_found_nor_deleted(
    api: Api, client: httpx.Client, job: Any, batch: Any
) -> None:
    nouns = ("jobs", "images", "batches", "datasets", "uploads")
    assert {client.delete(f"/v1/{noun}/{uuid4()}").status_code for noun in nouns} == {404}
    paths = [f"/v1/jobs/{job['id']}", *images_of(job), f"/v1/batches/{batch['id']}"]
    with api.client(tenant="another") as other:
        assert {other.delete(path).status_code for path in (*paths, f"/v1/uploads/{batch['upload_id']}")} == {404}
        assert statuses(client, *paths) == {200}
        client.delete(paths[0])
        assert statuses(other, paths[0]) == {404}
        assert other.delete(paths[0]).status_code == 404


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("jobs", Scope.JOBS_WRITE),
        ("images", Scope.JOBS_WRITE),
        ("batches", Scope.BATCHES_WRITE),
        ("datasets", Scope.DATASETS_WRITE),
        ("uploads", Scope.JOBS_WRITE),
    ],
)
def test_only_a_key_with_the_scope_of_changes_may_delete(api: Api, path: str, scope: Scope) -> None:
    with api.client(scopes=[Scope.JOBS_READ, Scope.VIEWER]) as reader, api.client(scopes=[scope]) as writer:
        assert reader.delete(f"/v1/{path}/{uuid4()}").status_code == 403
        assert writer.delete(f"/v1/{path}/{uuid4()}").status_code == 404


def test_every_deletion_is_recorded_once(client: httpx.Client, story: Story, job: Any) -> None:
    for _ in range(2):
        client.delete(images_of(job)[0])
        client.delete(f"/v1/jobs/{job['id']}")
    records = story.rows("SELECT action, subject FROM audit WHERE action LIKE '%delete' ORDER BY id")
    assert [tuple(record) for record in records] == [
        ("image.delete", job["images"][0]["id"]),
        ("job.delete", job["id"]),
    ]


def test_one_image_goes_and_its_job_stays(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, job: Any
) -> None:
    first, second = images_of(job)
    assert client.delete(first).status_code == 204
    assert gone(client, first)["pictures_left"] == 1
    assert gone(client, f"{first}/content")["id"] == job["images"][0]["id"]
    assert statuses(client, second) == {200}
    assert [image["index"] for image in client.get(f"/v1/jobs/{job['id']}").json()["images"]] == [1]
    sweep.delete()
    assert len(pictures(settings)) == 1
    client.delete(second)
    assert client.get(f"/v1/jobs/{job['id']}").json()["images"] == []
    sweep.delete()
    assert has_nothing_left(story, "images")
    assert story.balances()


def test_a_job_ends_when_its_last_image_that_waits_is_deleted(client: httpx.Client, story: Story) -> None:
    job = client.post("/v1/jobs", json={"prompt": "红色的圆形", "count": 2, **LOOK}).json()
    first, second = images_of(job)
    client.delete(first)
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"
    client.delete(second)
    assert client.get(f"/v1/jobs/{job['id']}").json()["finished_at"]
    assert story.claim() is None
    assert story.balances()


def test_a_retry_of_a_deleted_job_stays(client: httpx.Client, job: Any) -> None:
    retry = client.post(f"/v1/jobs/{job['id']}/retry").json()
    client.delete(f"/v1/jobs/{job['id']}")
    found = client.get(f"/v1/jobs/{retry['id']}").json()
    assert (found["parent_id"], found["recipe"]) == (None, job["recipe"])


def test_an_image_that_is_rendered_while_its_job_is_deleted_leaves_no_bytes(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep
) -> None:
    """One of its leases was lost before, and may have stored it as well; the other one stores it after the deletion."""
    job = client.post("/v1/jobs", json={"prompt": "红色的圆形", **LOOK}).json()
    storage, held = Storage(settings), []
    for is_lost in (True, False):
        held.append(story.started())
        if is_lost:
            until(lambda: story.die(held[0]).leases)
            story.skip_backoff()
    lost_key, late_key = (story.outcome(lease.images[0], lease.lease_id).key or "" for lease in held)
    storage.put(lost_key, b"x", "image/png")
    client.delete(f"/v1/jobs/{job['id']}")
    sweep.delete()
    storage.put(late_key, b"x", "image/png")
    assert story.renew(held[1]) == {held[1].lease_id: frozenset()}
    assert not story.publish(held[1]).images

    def is_clean() -> bool:
        sweep.clean()
        sweep.delete()
        return not pictures(settings)

    assert pictures(settings)
    until(is_clean)
    assert has_nothing_left(story, "jobs", "images")
    assert gone(client, f"/v1/jobs/{job['id']}")["finished_at"]


def test_who_waits_for_a_job_learns_that_it_was_deleted(api: Api, client: httpx.Client, aside: Any) -> None:
    job = client.post("/v1/jobs", json={"prompt": "红色的圆形", **LOOK}).json()["id"]

    def follow() -> list[str]:
        with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            return list(stream.iter_lines())

    following = aside.submit(follow)
    until(lambda: api.app.state.shared.job_watcher.subscriber_count)
    client.delete(f"/v1/jobs/{job}")
    following.result(20)


def test_a_batch_is_hidden_at_once_with_all_it_contains_and_then_is_gone(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, batch: Any
) -> None:
    path, jobs = f"/v1/batches/{batch['id']}", client.get("/v1/jobs", params={"batch": batch["id"]}).json()["items"]
    contained = [path for job in jobs for path in (f"/v1/jobs/{job['id']}", *images_of(job))]
    assert len(contained) == 18
    assert client.delete(path).status_code == 204
    assert gone(client, path)["pictures_left"] == 12
    assert statuses(client, *contained, *(f"{one}/thumbnail" for one in images_of(jobs[0]))) == {404}
    for list_of in (
        "/v1/batches",
        "/v1/jobs",
        f"/v1/jobs?batch={batch['id']}",
        "/v1/jobs?q=红色",
        "/v1/jobs?state=succeeded",
    ):
        assert client.get(list_of).json()["items"] == [], list_of
    for verb in ("pause", "resume", "cancel", "retry-failed"):
        assert client.post(f"{path}/{verb}").status_code == 410, verb
    assert client.post("/v1/datasets", json={"batch": batch["id"]}).status_code == 410
    assert {client.post(f"/v1/jobs/{jobs[0]['id']}/{verb}").status_code for verb in ("cancel", "retry")} == {404}
    assert (
        client.post("/v1/jobs", json={"prompt": "星形", "source": jobs[0]["images"][0]["id"], **LOOK}).status_code
        == 422
    )

    sweep.delete()
    assert pictures(settings) == set()
    assert gone(client, path)["pictures_left"] == 0
    assert gone(client, path)["finished_at"]
    assert has_nothing_left(story, "jobs", "images", "batches")
    assert story.balances()
    assert story.rows("SELECT stored, deleted_stored, closed, batch_id FROM lanes") == [(12, 12, True, None)]
    assert client.delete(path).status_code == 204


def test_a_batch_that_renders_is_cancelled_first(
    client: httpx.Client, story: Story, sweep: Sweep, submit: Submit, expand: Callable[[str], None]
) -> None:
    batch = submit()
    microbatch = story.started(capacity=2)
    assert client.delete(f"/v1/batches/{batch['id']}").status_code == 204
    assert story.claim() is None
    assert story.renew(microbatch) == {microbatch.lease_id: frozenset()}
    story.publish(microbatch)
    sweep.delete()  # it is not settled yet
    assert story.count("jobs") == 6
    expand(batch["id"])
    sweep.once()
    sweep.delete()
    assert story.count("jobs") == story.count("images") == story.count("batches") == 0
    assert story.balances()


def test_a_batch_goes_in_steps_that_another_process_continues(
    client: httpx.Client, story: Story, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.db import transaction
    from common.deletion import batches

    monkeypatch.setattr(batches, "STEP_IMAGES", 4)
    client.delete(f"/v1/batches/{batch['id']}")
    left = []
    for _ in range(3):
        with transaction(story.database) as connection:
            batches.step(connection)
        left.append(story.count("images"))
    assert left == [8, 4, 0]
    assert gone(client, f"/v1/batches/{batch['id']}")["finished_at"] is None


def test_the_retry_of_a_deleted_batch_stays(
    client: httpx.Client, story: Story, sweep: Sweep, submit: Submit, render: Render, expand: Callable[[str], None]
) -> None:
    parent = submit([*PROMPTS, "心形 #nan"])
    render()
    sweep.once()
    retry = client.post(f"/v1/batches/{parent['id']}/retry-failed").json()
    expand(retry["id"])
    client.delete(f"/v1/batches/{parent['id']}")
    sweep.delete()
    assert client.get(f"/v1/batches/{retry['id']}").json()["parent_id"] is None
    assert len(client.get("/v1/jobs", params={"batch": retry["id"]}).json()["items"]) == 1
    assert story.count("jobs") == 1


def test_what_failed_is_retried_anew_once_its_retry_is_deleted(
    client: httpx.Client, story: Story, sweep: Sweep, submit: Submit, render: Render, expand: Callable[[str], None]
) -> None:
    parent = submit(["心形 #nan", "星形"])
    render()
    sweep.once()
    first = client.post(f"/v1/batches/{parent['id']}/retry-failed").json()
    expand(first["id"])
    render()
    sweep.once()
    assert client.post(f"/v1/batches/{parent['id']}/retry-failed").status_code == 409
    client.delete(f"/v1/batches/{first['id']}")
    assert client.get(f"/v1/batches/{parent['id']}").json()["retry_id"] is None
    second = client.post(f"/v1/batches/{parent['id']}/retry-failed")
    assert second.status_code == 201
    expand(second.json()["id"])
    assert client.get(f"/v1/batches/{second.json()['id']}").json()["jobs"] == 1


def test_the_counts_of_a_batch_leave_out_what_was_deleted_of_it(client: httpx.Client, batch: Any) -> None:
    jobs = client.get("/v1/jobs", params={"batch": batch["id"]}).json()["items"]
    client.delete(f"/v1/jobs/{jobs[0]['id']}")
    client.delete(images_of(jobs[1])[0])
    images = client.get(f"/v1/batches/{batch['id']}").json()["images"]
    assert (images["total"], images["stored"], images["open"]) == (9, 9, 0)


def test_a_dataset_that_shows_a_deleted_image_says_so(
    client: httpx.Client, story: Story, settings: Settings, batch: Any
) -> None:
    exporter = Exporter(story.database, Storage(settings), CATALOG)

    def export(layout: str) -> str:
        made = client.post("/v1/datasets", json={"batch": batch["id"], "layout": layout}).json()
        assert not exporter.work(UUID(made["id"]), 60)
        found = client.get(f"/v1/datasets/{made['id']}").json()
        assert (found["state"], found["stale"]) == ("ready", False)
        return str(made["id"])

    def is_stale(dataset_id: str) -> bool:
        return bool(client.get(f"/v1/datasets/{dataset_id}").json()["stale"])

    before = export("webdataset")
    job = client.get("/v1/jobs", params={"batch": batch["id"]}).json()["items"][2]
    client.delete(images_of(job)[0])
    assert is_stale(before)
    after = export("parquet")
    assert client.get(f"/v1/datasets/{after}").json()["images"]["stored"] == 11
    client.delete(f"/v1/batches/{batch['id']}")
    assert is_stale(after)
    assert client.get(f"/v1/datasets/{after}/files").status_code == 200


def test_a_dataset_goes_with_all_its_files(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, batch: Any
) -> None:
    made = client.post("/v1/datasets", json={"batch": batch["id"]}).json()
    Exporter(story.database, Storage(settings), CATALOG).work(UUID(made["id"]), 60)
    path = f"/v1/datasets/{made['id']}"
    assert client.get(f"{path}/files").status_code == 200
    assert client.delete(path).status_code == 204
    assert gone(client, path)["kind"] == gone(client, f"{path}/files")["kind"] == "dataset"
    assert client.get("/v1/datasets").json()["items"] == []
    sweep._deleter._keys = 2  # its files take several requests
    sweep.delete()
    assert not [key for key in bucket_of(settings) if key.startswith("datasets/")]
    assert gone(client, path)["finished_at"]
    assert len(pictures(settings)) == 12


def test_a_dataset_that_is_written_while_it_is_deleted_leaves_no_file(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, batch: Any
) -> None:
    made = client.post("/v1/datasets", json={"batch": batch["id"]}).json()
    client.delete(f"/v1/datasets/{made['id']}")
    sweep.delete()
    late = f"datasets/{made['id']}/data/train-00000.tar"  # of an exporter that has not noticed yet
    Storage(settings).put(late, b"x", "application/x-tar")
    assert gone(client, f"/v1/datasets/{made['id']}")["finished_at"] is None
    with story.database.begin() as connection:
        connection.execute(text("UPDATE objects_to_delete SET due_at = now()"))
    sweep.delete()
    assert late not in bucket_of(settings)
    assert gone(client, f"/v1/datasets/{made['id']}")["finished_at"]


def test_a_dataset_that_is_still_written_fails_with_its_batch(client: httpx.Client, batch: Any) -> None:
    made = client.post("/v1/datasets", json={"batch": batch["id"]}).json()
    client.delete(f"/v1/batches/{batch['id']}")
    found = client.get(f"/v1/datasets/{made['id']}").json()
    assert (found["state"], found["error"]["code"], found["batch_id"]) == ("failed", "batch_deleted", batch["id"])


def test_an_upload_goes_unless_a_batch_was_made_of_it(
    client: httpx.Client, settings: Settings, sweep: Sweep, batch: Any
) -> None:
    upload = client.post("/v1/uploads", content="红色的圆形\n".encode(), headers={"Content-Type": "text/plain"}).json()
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert client.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert client.post("/v1/batches", json={"upload": upload["id"], "defaults": LOOK}).status_code == 410
    sweep.delete()
    assert not [key for key in bucket_of(settings) if upload["id"] in key]

    kept = client.delete(f"/v1/uploads/{batch['upload_id']}")
    assert (kept.status_code, batch["id"] in kept.json()["detail"]) == (409, True)
    client.delete(f"/v1/batches/{batch['id']}")
    sweep.delete()
    assert client.delete(f"/v1/uploads/{batch['upload_id']}").status_code == 204


def test_an_outage_of_the_store_delays_the_bytes_and_loses_none(
    client: httpx.Client, story: Story, settings: Settings, sweep: Sweep, quick: Settings, job: Any
) -> None:
    away = Storage(quick.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"}), attempts=1)
    client.delete(f"/v1/jobs/{job['id']}")
    Sweep(quick, story.database, Broker(quick), away).delete()
    assert gone(client, f"/v1/jobs/{job['id']}")["pictures_left"] == 2
    sweep.delete()
    assert pictures(settings) == set()


def test_a_request_to_the_store_is_as_long_as_it_answers_in_time(
    client: httpx.Client, settings: Settings, sweep: Sweep, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, delete_many = [], Storage.delete_many

    def slow(storage: Storage, keys: list[str]) -> list[str]:
        sizes.append(len(keys))
        if len(keys) > 3:
            raise Unavailable(Sentence("too slow", "too_slow", {}))
        return delete_many(storage, keys)

    monkeypatch.setattr(Storage, "delete_many", slow)
    monkeypatch.setattr(deleter, "FIRST_KEYS", 8)
    monkeypatch.setattr(deleter, "LEAST_KEYS", 1)
    client.delete(f"/v1/batches/{batch['id']}")
    working = Deleter(settings, sweep._database, Storage(settings))
    working.delete_batch_rows()
    for _ in range(20):
        with suppress(Unavailable):
            working.delete_bytes()
    assert sizes[:3] == [8, 4, 2]
    assert pictures(settings) == set()


def test_a_repeated_request_whose_job_was_deleted_says_so(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": json.dumps("once")}
    job = client.post("/v1/jobs", json={"prompt": "红色的圆形", **LOOK}, headers=headers).json()
    client.delete(f"/v1/jobs/{job['id']}")
    again = client.post("/v1/jobs", json={"prompt": "红色的圆形", **LOOK}, headers=headers)
    assert (again.status_code, again.json()["tombstone"]["id"]) == (410, job["id"])
