"""Batches of CSV and Parquet files, and of files with wrong lines: read, continued, skipped on request; dry runs."""

import io
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from api.services import batch_dry_run
from common.broker import Broker
from common.config import Settings
from common.prompt_files.conversion import convert as conversion
from common.storage import Storage
from tests.support.batch_stories import BatchStory
from tests.support.serving import Api
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, bucket_of, until
from worker.control import batch_expander
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 2}
PARQUET = "application/vnd.apache.parquet"
SHEET = '提示词,步数,种子\r\n"红色的圆形\r\n在草地上",3,7\r\n绿色的三角形,,\r\n蓝色的星形,4,\r\n'
RECIPES = [("红色的圆形\r\n在草地上", 3, [7]), ("绿色的三角形", 2, [101]), ("蓝色的星形", 4, [102])]
WRONG = "\n".join(
    [
        '{"prompt": "红色的圆形"}',
        "no JSON",
        '{"prompt": " "}',
        '{"prompt": "绿色的三角形", "steps": 999}',
        '{"prompt": "绿色的三角形"}',
        json.dumps({"prompt": "红" * 600}),
        '{"prompt": "蓝色的星形"}',
    ]
)


@pytest.fixture
def control(story: Story, settings: Settings) -> Expander:
    return Expander(story.database, Storage(settings), Broker(settings), CATALOG)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 2)
    monkeypatch.setattr(batch_expander, "CHECK_PROMPTS", 2)


def upload(client: httpx.Client, data: bytes, media_type: str) -> dict[str, Any]:
    answer = client.post("/v1/uploads", content=data, headers={"Content-Type": media_type})
    assert answer.status_code == 201, answer.text
    return answer.json()


def submitted(client: httpx.Client, data: bytes, media_type: str, **fields: Any) -> str:
    body = {"upload": upload(client, data, media_type)["id"], "defaults": LOOK, "seed": 100, **fields}
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def read(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    return client.get(f"/v1/batches/{batch_id}").json()


def recipes(client: httpx.Client, batch_id: str) -> list[Any]:
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    return [tuple(job["recipe"][name] for name in ("prompt", "steps", "seeds")) for job in jobs]


def parquet(rows_in_group: int = 2, **columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=rows_in_group)
    return file.getvalue()


FILES = {
    "csv": (SHEET.encode(), "text/csv"),
    "csv with a BOM": (SHEET.encode("utf-8-sig"), "text/csv"),
    "csv of an old Mac": (SHEET.replace("\r\n", "\r").encode(), "text/csv"),
    "csv of Excel on a Chinese Windows": (SHEET.encode("gb18030"), "text/csv; charset=GBK"),
    "parquet": (
        parquet(提示词=[one[0] for one in RECIPES], 步数=[3, None, 4.0], seed=pa.array([7, None, None])),
        PARQUET,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_sheet_becomes_jobs_when_each_chunk_opens_it_anew(
    client: httpx.Client, control: Expander, small_chunks: None, name: str
) -> None:
    batch_id = submitted(client, *FILES[name])
    while control.work(batch_id, 0):  # a chunk at a time, each opened anew
        pass
    found = read(client, batch_id)
    assert (found["state"], found["prompts"], found["jobs"], found["error"]) == ("running", 3, 3, None)
    first, *others = RECIPES
    if "Mac" in name:
        first = (first[0].replace("\r\n", "\r"), *first[1:])
    assert recipes(client, batch_id) == [first, *others]


def test_cr_alone_ends_a_prompt(client: httpx.Client, control: Expander) -> None:
    batch_id = submitted(client, "红色的圆形\r绿色的三角形\r".encode(), "text/plain")
    assert not control.work(batch_id, 60)
    assert [one[0] for one in recipes(client, batch_id)] == ["红色的圆形", "绿色的三角形"]


def test_the_encoding_of_a_sheet_is_found_and_returned(client: httpx.Client, settings: Settings) -> None:
    assert upload(client, SHEET.encode(), "text/csv")["encoding"] == "utf-8"
    assert upload(client, SHEET.encode("gbk"), "text/csv")["encoding"] == "gb18030"
    assert upload(client, SHEET.encode("gbk"), "text/csv; charset=GB2312")["encoding"] == "gb18030"
    assert upload(client, SHEET.encode("utf-16"), "text/csv")["encoding"] == "utf-16"
    kept = len(bucket_of(settings))
    broken = SHEET.encode() + b"\xff"
    for data, media_type, says in (
        (broken.replace(b"\r\n", b"\r"), "text/csv", "The file is neither UTF-8 (line 6) nor GB18030 (line "),
        (broken, "text/csv", "The file is neither UTF-8 (line 6) nor GB18030 (line "),
        (SHEET.encode("gbk"), "text/csv; charset=utf-8", "Line 1 is not UTF-8, as the file or the request says"),
        (SHEET.encode("utf-16") + b"x", "text/csv", "Line 6 is not UTF-16, as the file or the request says"),
        (SHEET.encode(), "text/csv; charset=big5", "charset must be UTF-8, UTF-16 or GB18030."),
        (FILES["parquet"][0][:-1], PARQUET, "The file is not Parquet, or it is truncated."),
        (b"x", PARQUET, "The file is not Parquet, or it is truncated."),
        (b"PAR1 and what is no table PAR1", PARQUET, "The file cannot be read as Parquet ("),
        (parquet(3_000_000, prompt=pa.nulls(3_000_000, pa.string())), PARQUET, "The file has no prompts."),
    ):
        answer = client.post("/v1/uploads", content=data, headers={"Content-Type": media_type})
        assert (answer.status_code, answer.json()["detail"][: len(says)]) == (422, says)
    assert len(bucket_of(settings)) == kept


@pytest.mark.parametrize(
    ("data", "media_type", "says"),
    [
        ("红色的圆形\n".encode(), "text/csv", "Line 1 must name the columns: no column is called prompt"),
        (b"prompt,steps\nx,3\ny,many\n\nz,4,5\n", "text/csv", "Line 3: steps must be a whole number. Line 5: it has 3"),
        (b"prompt\n\n", "text/csv", "Its file has no prompts."),
        (b"prompt" * 33_000, "text/csv", "Line 1 must name the columns: it is longer than 100,000 bytes"),
        (b"\n" * 2_000_000, "text/csv", "The first 1,000,000 bytes of the file are blank; its first line must name"),
        (parquet(prompt=["a", "b", "c"], steps=[2, 0, 999]), PARQUET, "Row 2: steps is 0;"),
        (parquet(words=["a"]), PARQUET, "The file: no column is called prompt"),
    ],
)
def test_wrong_sheets_are_refused_before_anything_is_expanded(
    client: httpx.Client, control: Expander, data: bytes, media_type: str, says: str
) -> None:
    batch_id = submitted(client, data, media_type)
    assert not control.work(batch_id, 60)
    found = read(client, batch_id)
    assert (found["state"], found["jobs"], found["error"]["code"]) == ("ended", 0, "invalid")
    assert found["error"]["message"].startswith(says)


def test_wrong_lines_are_skipped_on_request(client: httpx.Client, control: Expander, small_chunks: None) -> None:
    batch_id = submitted(client, WRONG.encode(), "application/jsonl", skip_bad=True, images_per_prompt=2)
    while control.work(batch_id, 0):
        pass
    found = read(client, batch_id)
    assert (found["state"], found["skip_bad"], found["prompts"], found["jobs"]) == ("running", True, 3, 3)
    assert recipes(client, batch_id) == [
        ("红色的圆形", 2, [100, 101]),
        ("绿色的三角形", 2, [102, 103]),
        ("蓝色的星形", 2, [104, 105]),
    ]
    assert found["skipped"] == 4
    reasons = {skip["line"]: skip["reason"] for skip in found["skips"]}
    assert list(reasons) == [2, 3, 4, 6]
    assert reasons[2] == 'it is not JSON; write an object such as {"prompt": "…"}.'
    assert reasons[3] == "prompt is empty."
    assert reasons[6].startswith("prompt has 602 tokens")


def test_wrong_lines_are_skipped_where_the_file_ends_with_many(
    client: httpx.Client, control: Expander, small_chunks: None
) -> None:
    """The last chunk has no right line, but one before it has."""
    batch_id = submitted(client, '{"prompt": "红色的圆形"}\n{}\n{}\n{}\n'.encode(), "application/jsonl", skip_bad=True)
    while control.work(batch_id, 0):
        pass
    found = read(client, batch_id)
    assert (found["state"], found["error"], found["jobs"], found["skipped"]) == ("running", None, 1, 3)


def test_a_file_with_no_right_line_or_too_many_wrong_ones_is_refused(
    client: httpx.Client, control: Expander, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = submitted(client, b"{}\n" * 5, "application/jsonl", skip_bad=True)
    assert not control.work(batch_id, 60)
    found = read(client, batch_id)
    assert (found["state"], found["error"]["message"]) == (
        "ended",
        "None of its lines is right. Line 5: prompt is missing.",
    )
    monkeypatch.setattr(batch_expander, "MAX_SKIPPED", 3)
    batch_id = submitted(client, WRONG.encode(), "application/jsonl", skip_bad=True)
    assert not control.work(batch_id, 60)
    message = read(client, batch_id)["error"]["message"]
    assert message.startswith("More than 3 of its lines are wrong. Line 6: prompt has 602 tokens")


def test_any_reason_can_be_stored(client: httpx.Client, control: Expander) -> None:
    lines = '{"prompt": "红色的圆形"}\n{"prompt": "x", "model": "a\\u0000"}\n{"prompt": "x", "format": "\\ud800"}'
    batch_id = submitted(client, lines.encode(), "application/jsonl", skip_bad=True)
    assert not control.work(batch_id, 60)
    assert read(client, batch_id)["skipped"] == 2
    batch_id = submitted(client, lines.encode(), "application/jsonl")
    assert not control.work(batch_id, 60)
    assert read(client, batch_id)["state"] == "ended"


# Dry runs


def try_out(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"defaults": LOOK, "seed": 100, **fields}
    answer = client.post("/v1/batches", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_dry_run_returns_what_a_batch_becomes_and_stores_nothing(
    client: httpx.Client, control: Expander, settings: Settings
) -> None:
    file = upload(client, WRONG.encode(), "application/jsonl")["id"]
    before, redis = bucket_of(settings), Broker(settings)._redis
    found = try_out(client, upload=file, skip_bad=True, images_per_prompt=2)
    assert (found["prompts"], found["checked_prompts"], found["is_estimate"]) == (7, 7, False)
    assert (found["jobs"], found["images"], found["bad"]) == (3, 6, 4)
    assert [one["line"] for one in found["bad_lines"]] == [2, 3, 4, 6]
    estimate = found["estimate"]
    assert [estimate[name] for name in ("gpu_seconds", "seconds", "seconds_p90", "bytes")] == [None] * 4
    assert (estimate["unknown"]["code"], estimate["bytes_unknown"]["code"]) == ("no_worker", "no_sizes")
    assert bucket_of(settings) == before
    assert redis.llen("control") == 0
    assert client.get("/v1/batches").json()["items"] == []

    body = {"upload": file, "skip_bad": True, "images_per_prompt": 2, "defaults": LOOK, "seed": 100}
    batch_id = client.post("/v1/batches", json=body).json()["id"]
    assert not control.work(batch_id, 60)
    jobs = client.get("/v1/jobs", params={"batch": batch_id}).json()["items"][::-1]
    assert found["recipes"] == [job["recipe"] for job in jobs]
    assert found["bad_lines"] == read(client, batch_id)["skips"]


def test_a_dry_run_of_inline_prompts_counts_what_their_matrix_makes(client: httpx.Client, settings: Settings) -> None:
    matrix = {"guidance": [1.5, 3]}
    found = try_out(client, prompts=["红色的圆形", "小狗\n第二行"], matrix=matrix, images_per_prompt=3)
    assert (found["prompts"], found["jobs"], found["images"], found["bad"]) == (2, 4, 12, 0)
    assert [(one["guidance"], one["seeds"][0]) for one in found["recipes"]] == [
        (1.5, 100),
        (3, 100),
        (1.5, 103),
        (3, 103),
    ]
    assert (found["warned"], found["warnings"][0][:7]) == (1, "Line 2:")
    assert bucket_of(settings) == {}


def test_a_dry_run_of_a_large_file_is_an_estimate(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_dry_run, "MAX_PROMPTS", 100)
    monkeypatch.setattr(batch_dry_run, "MAX_S", 60)
    monkeypatch.setattr(batch_dry_run, "STEP_JOBS", 50)
    rows = "".join(f'{{"prompt": "红色的圆形 {n:04}"}}\n' for n in range(1000))
    sheet = "prompt,steps\n" + "".join(f"红色的圆形 {n:04},{n % 10}\n" for n in range(1000))
    table = parquet(prompt=[f"红色的圆形 {n:04}" for n in range(1000)])
    for data, media_type, near, bad in (
        (rows.encode(), "application/jsonl", 0, 0),
        (sheet.encode(), "text/csv", 10, 10),
        (table, PARQUET, 10, 0),
    ):
        found = try_out(client, upload=upload(client, data, media_type)["id"], images_per_prompt=2)
        assert (found["checked_prompts"], found["is_estimate"], found["bad"]) == (100, True, bad)
        assert abs(found["prompts"] - 1000) <= near
        assert abs(found["jobs"] - (1000 - 10 * bad)) <= near
        assert abs(found["images"] - 2 * found["jobs"]) <= 1


def test_a_dry_run_estimates_time_and_size(
    client: httpx.Client, control: Expander, story: Story, make_worker: MakeWorker
) -> None:
    look = {"model": "mini-zh", "steps": 1, "width": 64, "height": 64}
    batch_id = submitted(client, "红色的圆形\n".encode() * 20, "text/plain", defaults=look)
    assert not control.work(batch_id, 60)
    worker = make_worker(device="stub:0.01")
    worker.loop.start()
    until(lambda: worker.loop.run() or read(client, batch_id)["images"]["stored"] == 20)
    worker.heartbeat.beat()
    found = try_out(client, prompts=["红色的圆形"] * 50, images_per_prompt=50, defaults=look)["estimate"]
    images = [image for job in client.get("/v1/jobs").json()["items"] for image in job["images"]]
    assert found["bytes"] == pytest.approx(2500 * sum(image["bytes"] for image in images) / 20, abs=1)
    assert 0 < found["gpu_seconds"] < found["seconds"] < found["seconds_p90"]
    assert try_out(client, prompts=["红色的圆形"], defaults={**look, "width": 72})["estimate"]["bytes"] is None


def test_a_dry_run_is_refused_as_the_batch_would_be(client: httpx.Client) -> None:
    missing = "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"
    table = parquet(words=["a"])
    for fields, status, says in (
        ({"upload": missing}, 404, f"There is no upload {missing} with prompts in it."),
        ({"prompts": ["x"], "defaults": {"steps": 0}}, 422, "defaults.steps is 0"),
        ({"upload": upload(client, b"steps\n3\n", "text/csv")["id"]}, 422, "Line 1 must name the columns: no column"),
        ({"upload": upload(client, b"prompt\n", "text/csv")["id"]}, 422, "The file has no prompts."),
        ({"upload": upload(client, table, PARQUET)["id"]}, 422, "The file: no column is called prompt"),
        ({"upload": upload(client, b"prompt" * 33_000, "text/csv")["id"]}, 422, "Line 1 must name the columns: it is"),
    ):
        answer = client.post("/v1/batches", params={"dry_run": "true"}, json=fields)
        assert (answer.status_code, answer.json()["detail"][: len(says)]) == (status, says)


def test_a_dry_run_ends_in_time_whatever_the_lines_are(
    client: httpx.Client, story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank lines, which take longer than that to read, and a converter that does not answer."""
    monkeypatch.setattr(batch_dry_run, "MAX_S", 0.2)
    monkeypatch.setattr(batch_dry_run, "START_S", 0.2)
    blank = upload(client, b"\n" * 20_000_000, "text/plain")["id"]
    table = BatchStory(story, settings).upload(parquet(prompt=["a"]), "parquet")
    monkeypatch.setattr(conversion, "CONVERTER", ("sh", "-c", "exec sleep 60"))
    for file, status, says in (
        (blank, 422, "No prompt was found up to line "),
        (str(table), 503, "The process that converts the file was too slow"),
    ):
        began = time.monotonic()
        answer = client.post("/v1/batches", params={"dry_run": "true"}, json={"upload": file})
        assert time.monotonic() - began < 3
        assert (answer.status_code, answer.json()["detail"][: len(says)]) == (status, says)


def test_a_tenant_has_one_dry_run_at_a_time_and_nobody_else_waits_for_it(
    api: Api,
    client: httpx.Client,
    story: Story,
    settings: Settings,
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "busy").touch()
    slow = f"while [ -e {tmp_path}/busy ]; do sleep 0.05; done; echo '[\"prompt\"]'"
    monkeypatch.setattr(conversion, "CONVERTER", ("sh", "-c", slow))
    monkeypatch.setattr(api.app.state.shared.dry_run_turns, "wait_s", 0.1)
    monkeypatch.setattr(batch_dry_run, "START_S", 60)

    def hold(tenant: httpx.Client, name: str, threads: int) -> Future[httpx.Response]:
        file = {"upload": str(BatchStory(story, settings).upload(parquet(prompt=["a"]), "parquet", name))}
        held = aside.submit(tenant.post, "/v1/batches", params={"dry_run": "true"}, json=file)
        until(lambda: api.app.state.shared.dry_run_limiter.borrowed_tokens == threads)
        return held

    with api.client("another") as other:
        first = hold(client, "somebody", 1)
        second = client.post("/v1/batches", params={"dry_run": "true"}, json={"prompts": ["红色的圆形"]})
        assert (second.status_code, second.json()["code"], second.headers["Retry-After"]) == (429, "limit_reached", "2")
        assert try_out(other, prompts=["红色的圆形"])["jobs"] == 1
        third = hold(other, "another", 2)
        upload(other, "红色的圆形".encode(), "text/plain")
        assert other.post("/v1/batches", json={"prompts": ["红色的圆形"], "defaults": LOOK}).status_code == 201
        (tmp_path / "busy").unlink()
        assert (first.result(30).status_code, third.result(30).status_code) == (422, 422)
    assert try_out(client, prompts=["红色的圆形"])["jobs"] == 1
