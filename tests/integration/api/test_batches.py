"""Batches as a client meets them: uploaded, submitted, listed, paused, cancelled; and what is refused."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from common.broker import Broker
from common.config import Settings
from common.enums import Scope, Tier
from common.storage import Storage
from tests.support.serving import Api, serving
from tests.support.stories import CATALOG, Story
from tests.support.workers import bucket_of, until
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 2}
PROMPTS = ["红色的圆形", "绿色的三角形\n第二行", "蓝色的星形"]


@pytest.fixture
def expander(story: Story, settings: Settings) -> Expander:
    """The control worker of a test, who does something when he is told."""
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


def submitted(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/batches", json={"prompts": PROMPTS, "defaults": LOOK, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def batch(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/batches/{batch_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def change(client: httpx.Client, batch_id: str, verb: str) -> dict[str, Any]:
    answer = client.post(f"/v1/batches/{batch_id}/{verb}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def expanded(client: httpx.Client, expander: Expander, **fields: Any) -> str:
    batch_id = submitted(client, **fields)["id"]
    assert not expander.work(batch_id, 60)
    return str(batch_id)


def upload(client: httpx.Client, data: Any, media_type: str = "text/plain") -> httpx.Response:
    return client.post("/v1/uploads", content=data, headers={"Content-Type": media_type})


def refusal(answer: httpx.Response) -> tuple[int, list[str]]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    return answer.status_code, [error["field"] for error in problem["errors"]] or [problem["detail"]]


def test_prompts_become_jobs_that_say_so(client: httpx.Client, expander: Expander) -> None:
    expanded(client, expander, prompts=["紫色的心形"])  # another one
    made = submitted(client, images_per_prompt=2, seed=100, name="a trial")
    assert (made["state"], made["tier"], made["name"], made["model"]) == ("checking", "bulk", "a trial", "mini-zh")
    assert (made["prompts"], made["jobs"], made["images"]["total"]) == (None, 0, None)
    assert not expander.work(made["id"], 60)
    found = batch(client, made["id"])
    assert (found["state"], found["prompts"], found["jobs"]) == ("running", 3, 3)
    assert found["images"] == {"total": 6, "open": 6, "stored": 0, "flagged": 0, "failed": 0, "cancelled": 0}
    jobs = client.get("/v1/jobs", params={"batch": made["id"]}).json()["items"]
    assert {job["batch_id"] for job in jobs} == {made["id"]}
    assert [job["recipe"]["prompt"] for job in jobs] == PROMPTS[::-1]
    assert [job["recipe"]["seeds"] for job in jobs] == [[104, 105], [102, 103], [100, 101]]


def test_fields_that_are_left_out_are_filled_in_at_once(client: httpx.Client) -> None:
    made = submitted(client, defaults={})
    assert made["defaults"] == {"model": "mini-zh"}
    assert made["images_per_prompt"] == 1
    assert 0 <= made["seed"] < 2**53
    assert batch(client, made["id"])["seed"] == made["seed"]
    assert submitted(client)["seed"] != made["seed"]


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("text/plain; charset=utf-8", "红色的圆形\n\n蓝色的星形\n"),
        ("application/jsonl", '{"prompt": "红色的圆形"}\n{"prompt": "蓝色的星形", "seed": 7}'),
        ("Application/X-NDJSON", '{"prompt": "红色的圆形"}\n{"prompt": "蓝色的星形"}\n'),
    ],
)
def test_a_file_is_stored_as_it_was_sent(
    client: httpx.Client, settings: Settings, expander: Expander, media_type: str, data: str
) -> None:
    answer = upload(client, data.encode(), media_type)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["bytes"], made["sha256"]) == (len(data.encode()), hashlib.sha256(data.encode()).hexdigest())
    assert bucket_of(settings) == {f"uploads/{made['id']}.{made['format']}": data.encode()}
    batch_id = expanded(client, expander, prompts=None, upload=made["id"])
    assert (batch(client, batch_id)["upload_id"], batch(client, batch_id)["jobs"]) == (made["id"], 2)


def test_a_matrix_renders_each_prompt_with_each_variant(client: httpx.Client, expander: Expander) -> None:
    matrix = {"steps": [2, 3], "zip": [{"guidance": [1.5, 3], "scheduler": ["lms", "pndm"]}]}
    batch_id = expanded(client, expander, defaults={}, matrix=matrix, images_per_prompt=2, seed=7)
    found = batch(client, batch_id)
    assert (found["model"], found["matrix"], found["variants"]) == ("mini-zh", matrix, 4)
    assert (found["prompts"], found["jobs"], found["images"]["total"]) == (3, 12, 24)
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    drawn = [tuple(job["recipe"][name] for name in ("prompt", "steps", "scheduler", "seeds")) for job in jobs]
    assert drawn == [
        (prompt, steps, scheduler, [7 + 2 * place, 8 + 2 * place])
        for place, prompt in enumerate(PROMPTS)
        for steps in (2, 3)
        for scheduler in ("lms", "pndm")
    ]


def test_pages_of_batches_and_of_their_jobs_have_no_gap(client: httpx.Client, expander: Expander) -> None:
    ids = [expanded(client, expander), *(submitted(client)["id"] for _ in range(3))]
    for path, params, wanted in (
        ("/v1/batches", {"limit": 2}, ids[::-1]),
        ("/v1/jobs", {"limit": 2, "batch": ids[0]}, PROMPTS[::-1]),
    ):
        found, pages = list[str](), 0
        url: Any = httpx.URL(path, params=params)
        while url:
            page = client.get(url)
            found += [
                item["id"] if path == "/v1/batches" else item["recipe"]["prompt"] for item in page.json()["items"]
            ]
            url, pages = page.links.get("next", {}).get("url"), pages + 1
            assert bool(url) == bool(page.json()["next_cursor"])
        assert (found, pages) == (wanted, -(-len(wanted) // 2))


def test_a_paused_batch_says_so_and_its_jobs_say_why(client: httpx.Client, expander: Expander, story: Story) -> None:
    batch_id = expanded(client, expander)
    for _ in range(2):
        assert change(client, batch_id, "pause")["state"] == "paused"
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"]
    assert {(job["state"], job["waiting_for"]["code"], job["position"]) for job in jobs} == {
        ("queued", "batch_paused", None)
    }
    assert story.claim() is None
    assert client.get("/v1/queue").json()["by_model_and_tier"] == []
    assert change(client, batch_id, "resume")["state"] == "running"
    assert {job["waiting_for"]["code"] for job in client.get("/v1/jobs").json()["items"]} == {"no_worker"}
    assert len(story.started().images) == 3
    assert batch(client, batch_id)["running"] == 3
    change(client, batch_id, "pause")
    queue = client.get("/v1/queue").json()
    assert (queue["waiting"], queue["running"], queue["oldest_s"]) == (0, 3, None)


def test_what_runs_of_a_paused_batch_does_not_hide_what_waits(
    client: httpx.Client, expander: Expander, story: Story
) -> None:
    batch_id = expanded(client, expander)
    assert len(story.started().images) == 3
    change(client, batch_id, "pause")
    story.submit(count=2, tier=Tier.BULK)
    queue = client.get("/v1/queue").json()
    assert (queue["waiting"], queue["running"]) == (2, 3)


def test_a_cancelled_batch_has_ended_at_once(
    client: httpx.Client, expander: Expander, story: Story, settings: Settings
) -> None:
    batch_id = expanded(client, expander, images_per_prompt=2)
    stored, running = story.started(capacity=1), story.started(capacity=1)
    story.publish(stored)
    ended = change(client, batch_id, "cancel")
    assert (ended["state"], ended["running"], ended["finished_at"]) == ("ended", 0, None)
    assert ended["images"] == {"total": 6, "open": 0, "stored": 1, "flagged": 0, "failed": 0, "cancelled": 5}
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"]
    assert [job["state"] for job in jobs] == ["queued", "queued", "cancelled"]
    assert {job["waiting_for"]["code"] for job in jobs if job["waiting_for"]} == {"batch_cancelled"}
    assert story.publish(running).images == frozenset()
    assert change(client, batch_id, "cancel")["state"] == "ended"
    assert not expander.work(batch_id, 60)
    assert {job["state"] for job in client.get("/v1/jobs").json()["items"]} == {"cancelled"}
    assert batch(client, batch_id)["images"] == ended["images"]
    for verb in ("pause", "resume"):
        answer = client.post(f"/v1/batches/{batch_id}/{verb}")
        assert (answer.status_code, answer.json()["detail"]) == (409, f"Batch {batch_id} was cancelled.")


def test_each_change_of_a_batch_sends_the_messages_it_needs(
    client: httpx.Client, expander: Expander, settings: Settings
) -> None:
    redis = Broker(settings)._redis

    def waiting() -> tuple[int, int]:
        return redis.llen("control"), redis.llen("render.mini-zh")

    batch_id = submitted(client)["id"]
    assert waiting() == (1, 0)
    expander.work(batch_id, 60)
    redis.flushdb()
    change(client, batch_id, "pause")
    assert waiting() == (0, 0)
    change(client, batch_id, "resume")
    assert waiting() == (0, 1)
    change(client, batch_id, "cancel")
    assert waiting() == (1, 1)


def test_the_cancel_of_a_batch_is_announced_to_workers(
    client: httpx.Client, expander: Expander, story: Story, settings: Settings
) -> None:
    batch_id = expanded(client, expander)
    in_hand = {str(image.job_id) for image in story.started(capacity=2).images}
    with Broker(settings)._redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe("huafang:cancelled")
        until(lambda: channel.subscribed and channel.get_message(timeout=0.1) is None)
        change(client, batch_id, "cancel")
        message = until(lambda: channel.get_message(timeout=1))
    assert set(message["data"].split()) == in_hand


def test_prompts_with_a_warning_are_named(client: httpx.Client, expander: Expander) -> None:
    found = batch(client, expanded(client, expander, prompts=["红色的圆形", "小狗"]))
    assert (found["jobs"], found["warned"]) == (2, 1)
    assert found["warnings"][0].startswith("Line 2: mini-zh is a toy")


def test_prompts_that_cannot_be_rendered_end_a_batch(client: httpx.Client, expander: Expander) -> None:
    batch_id = expanded(client, expander, prompts=["红色的圆形", " "])
    found = batch(client, batch_id)
    assert (found["state"], found["jobs"], found["error"]["code"]) == ("ended", 0, "invalid")
    assert found["error"]["message"] == "Line 2: prompt is empty."
    assert found["finished_at"]


def test_the_same_key_gives_the_same_batch(client: httpx.Client, settings: Settings) -> None:
    def post(**fields: Any) -> httpx.Response:
        body = {"prompts": PROMPTS, "defaults": LOOK, **fields}
        return client.post("/v1/batches", json=body, headers={"Idempotency-Key": "one"})

    first, again, other = post(), post(), post(images_per_prompt=2)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert len(client.get("/v1/batches").json()["items"]) == 1
    assert len(bucket_of(settings)) == 1
    assert client.post("/v1/jobs", json={"prompt": "红色的圆形"}, headers={"Idempotency-Key": "one"}).status_code == 201


def test_a_tenant_sees_only_its_own(api: Api, client: httpx.Client) -> None:
    batch_id, file = submitted(client)["id"], upload(client, b"x").json()["id"]
    with api.client("another") as stranger:
        assert stranger.get("/v1/batches").json()["items"] == []
        assert stranger.get(f"/v1/batches/{batch_id}").status_code == 404
        for verb in ("pause", "resume", "cancel"):
            assert stranger.post(f"/v1/batches/{batch_id}/{verb}").status_code == 404
        answer = stranger.post("/v1/batches", json={"upload": file})
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no upload {file} with prompts in it.")
        assert stranger.get("/v1/jobs", params={"batch": batch_id}).json()["items"] == []
    assert batch(client, batch_id)["state"] == "checking"


def test_a_key_needs_the_scope(api: Api, client: httpx.Client) -> None:
    batch_id = submitted(client)["id"]
    with api.client(scopes=[Scope.JOBS_READ, Scope.JOBS_WRITE]) as reader:
        assert reader.get(f"/v1/batches/{batch_id}").status_code == 200
        answers = [
            reader.post(f"/v1/{path}", json={"prompts": PROMPTS}) for path in ("batches", f"batches/{batch_id}/cancel")
        ]
        for answer in (*answers, upload(reader, b"x")):
            assert (answer.status_code, answer.json()["detail"]) == (403, "This API key lacks the scope batches:write.")
    with api.client(scopes=[Scope.BATCHES_WRITE]) as writer:
        assert upload(writer, b"x").status_code == 201
        assert submitted(writer)["state"] == "checking"
        assert writer.get("/v1/batches").status_code == 403


WRONG = {
    "neither prompts nor a file": ({"defaults": {}}, ["body"]),
    "both": ({"prompts": ["x"], "upload": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"}, ["body"]),
    "no prompts": ({"prompts": []}, ["prompts"]),
    "half a surrogate": (b'{"prompts": ["\\ud800"]}', ["prompts.0"]),
    "half a surrogate for a field": (b'{"prompts": ["x"], "defaults": {"\\ud800": 1}}', ["defaults."]),
    "a prompt that is a number": ({"prompts": ["x", 7]}, ["prompts.1"]),
    "a field nobody knows": ({"prompts": ["x"], "step": 1}, ["step"]),
    "a default nobody knows": ({"prompts": ["x"], "defaults": {"step": 1}}, ["defaults.step"]),
    "a default that is each prompt's": (
        {"prompts": ["x"], "defaults": {"seed": 1, "count": 2}},
        ["defaults.count", "defaults.seed"],
    ),
    "wrong defaults": ({"prompts": ["x"], "defaults": {"steps": 0, "width": 7}}, ["defaults.width", "defaults.steps"]),
    "NaN": (b'{"prompts": ["x"], "defaults": {"guidance": NaN}}', ["defaults.guidance"]),
    "a model nobody knows": ({"prompts": ["x"], "defaults": {"model": "sd-9"}}, ["defaults.model"]),
    "a model that is a number": ({"prompts": ["x"], "defaults": {"model": 7}}, ["defaults.model"]),
    "a negative prompt that is too long": (
        {"prompts": ["x"], "defaults": {"negative_prompt": "红" * 600}},
        ["defaults.negative_prompt"],
    ),
    "more images than a job may have": ({"prompts": ["x"], "images_per_prompt": 65}, ["images_per_prompt"]),
    "no images": ({"prompts": ["x"], "images_per_prompt": 0}, ["images_per_prompt"]),
    "a seed that is none": ({"prompts": ["x"], "seed": -1}, ["seed"]),
    "a tier nobody knows": ({"prompts": ["x"], "tier": "urgent"}, ["tier"]),
    "a matrix of nobody knows what": ({"prompts": ["x"], "matrix": {"step": [1]}}, ["matrix"]),
    "half a surrogate in a matrix": (b'{"prompts": ["x"], "matrix": {"zip": [{"\\ud800": [1]}]}}', ["matrix.zip.0"]),
    "a list without values": ({"prompts": ["x"], "matrix": {"steps": []}}, ["matrix.steps"]),
    "pairs of which one is missing": (
        {"prompts": ["x"], "matrix": {"zip": [{"steps": [1, 2], "guidance": [3]}]}},
        ["matrix.zip.0"],
    ),
    "a matrix that is too large": ({"prompts": ["x"], "matrix": {"steps": list(range(1, 300))}}, ["matrix"]),
    "a default that the matrix changes": (
        {"prompts": ["x"], "defaults": {"steps": 3}, "matrix": {"steps": [1, 2]}},
        ["defaults.steps"],
    ),
    "a variant that cannot be": ({"prompts": ["x"], "matrix": {"steps": [1, 999]}}, ["matrix.steps"]),
    "NaN in a matrix": (b'{"prompts": ["x"], "matrix": {"guidance": [1, NaN]}}', ["matrix.guidance"]),
    "a model of a matrix that nobody knows": ({"prompts": ["x"], "matrix": {"model": ["sd-9"]}}, ["matrix.model"]),
    "a variant whose model cannot": (
        {"prompts": ["x"], "defaults": {"width": 512, "height": 512}, "matrix": {"model": ["zh-v0", "mini-zh"]}},
        ["defaults.width"],
    ),
    "a NUL in the name": ({"prompts": ["x"], "name": "\0"}, ["name"]),
}


def test_a_request_that_fits_no_prompt_is_refused_at_once(client: httpx.Client, settings: Settings) -> None:
    found = {}
    for name, (body, _) in WRONG.items():
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = client.post("/v1/batches", content=content, headers={"Content-Type": "application/json"})
        found[name] = refusal(answer)
    assert found == {name: (422, fields) for name, (_, fields) in WRONG.items()}
    assert bucket_of(settings) == {}


def test_files_of_other_formats_are_refused(client: httpx.Client, settings: Settings) -> None:
    assert refusal(upload(client, b"x", "text/html"))[0] == 415
    assert refusal(client.post("/v1/uploads", content=b"x"))[0] == 415
    assert refusal(upload(client, b"")) == (422, ["The file is empty."])
    assert bucket_of(settings) == {}


def test_an_incomplete_file_is_not_stored(
    client: httpx.Client, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"x" * 1_500_000
        raise InterruptedError

    with pytest.raises(InterruptedError):
        upload(client, blocks())
    until(lambda: [line for line in client.get("/metrics").text.splitlines() if "/v1/uploads" in line])
    assert bucket_of(settings) == {}
    assert caplog.records == []


def test_bodies_have_the_limits_of_their_routes(settings: Settings, database: Any) -> None:
    with serving(settings.model_copy(update={"upload_limit": 3_000_000}), database) as api, api.client() as client:
        blocks = [b"x" * 1_000_000] * 4
        for data in (b"".join(blocks), iter(blocks)):  # of a length that is declared, and of one that is not
            answer = upload(client, data)
            assert refusal(answer) == (413, ["body"])
            assert answer.json()["detail"] == "The body is over the limit of 3,000,000 bytes."
        assert upload(client, iter(blocks[:3])).status_code == 201
        assert client.post("/v1/batches", json={"prompts": ["x" * 8000] * 1200}).status_code == 201
        assert client.post("/v1/batches", json={"prompts": ["x" * 8000] * 1300}).status_code == 413
        assert client.post("/v1/jobs", json={"prompt": "x" * 1_000_000}).status_code == 413


@pytest.fixture
def lonely_api(api: Api, farm_env: dict[str, str], tmp_path: Path) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """An API in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "api", "--port=0"]
    with (tmp_path / "api.log").open("wb") as log:
        child = subprocess.Popen(command, env={"PATH": "", **farm_env}, stderr=log)
    try:
        process = psutil.Process(child.pid)
        listens = until(lambda: [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN])
        with api.client() as client:
            client.base_url = httpx.URL(f"http://127.0.0.1:{listens[0].laddr.port}")
            until(lambda: client.get("/healthz").status_code == 200)
            yield process, client
    finally:
        child.kill()
        child.wait(60)


def test_a_large_file_is_not_held_in_memory(lonely_api: tuple[psutil.Process, httpx.Client]) -> None:
    process, client = lonely_api
    assert upload(client, b"x").status_code == 201  # all that is loaded late is loaded
    before, seen, over = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        line = "红色的圆形\n".encode()
        answer = upload(client, (line * 62_500 for _ in range(60)))
    finally:
        over.set()
        watcher.join()
    assert (answer.status_code, answer.json()["bytes"]) == (201, 60_000_000)
    assert max(seen) - before < 45_000_000
