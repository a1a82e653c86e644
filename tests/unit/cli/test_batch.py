"""`huafang batch` against a farm that answers as the test says: options, dry runs, watches and outcomes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.queries.batches import BATCH
from tests.support.batch_answers import DRY_RUN, IMAGES, TEXT, UPLOAD, WHEN, accept_batch, batch
from tests.support.command_line import CommandLine, Response, fake_farm


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr("cli.client.RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setattr("cli.client.MAX_POLL_S", 0.01)
    return lambda farm, *given: CommandLine(capsys)("--url", farm.url, "--key=k", "--format=json", "batch", *given)


@pytest.mark.parametrize(
    ("suffix", "media_type"),
    [
        (".txt", "text/plain"),
        (".JSONL", "application/jsonl"),
        (".csv", "text/csv"),
        (".parquet", "application/vnd.apache.parquet"),
        (".ndjson", "application/jsonl"),
        (".tsv", "text/tab-separated-values"),
    ],
)
def test_a_file_is_uploaded_and_submitted(
    call: Callable[..., Any], tmp_path: Path, suffix: str, media_type: str
) -> None:
    file = tmp_path / f"prompts{suffix}"
    file.write_text(TEXT)
    options = ("--images-per-prompt=4", "--seed=7", "--size=64x128", "--negative=水印", "--tier=standard", "--name=门")
    with fake_farm(accept_batch) as farm:
        done = call(farm, "submit", str(file), "--model=mini-zh", "--steps=3", "--stop-at=20%/50", *options)
    assert (done.code, done.json["id"]) == (0, BATCH["id"])
    uploaded, submitted = farm.requests
    assert (uploaded.body, uploaded.headers["content-type"]) == (TEXT.encode(), media_type)
    assert submitted.headers["idempotency-key"]
    assert submitted.body == {
        "upload": "the-upload",
        "defaults": {"model": "mini-zh", "steps": 3, "width": 64, "height": 128, "negative_prompt": "水印"},
        "images_per_prompt": 4,
        "seed": 7,
        "tier": "standard",
        "name": "门",
        "stop_rule": {"percent": 20, "of_last": 50},
    }


def test_a_stop_rule_is_a_percentage_of_the_last_images(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(TEXT)
    with fake_farm(accept_batch) as farm:
        assert call(farm, "submit", str(tmp_path / "prompts.txt"), "--stop-at", "2.5/1000").code == 0
        assert farm.requests[1].body["stop_rule"] == {"percent": 2.5, "of_last": 1000}
        for wrong in ("20", "20%", "20%/", "/50", "x/50", "-1/50", "20%/50/2"):
            done = call(farm, "submit", str(tmp_path / "prompts.txt"), f"--stop-at={wrong}")
            assert (done.code, "20%/50" in done.err) == (2, True), wrong


def test_failed_images_are_retried_as_a_new_batch(call: Callable[..., Any]) -> None:
    retry = batch(id="the-retry", parent_id=BATCH["id"])
    with fake_farm(lambda request: Response(body=retry)) as farm:
        done = call(farm, "retry-failed", "the-batch")
        watched = call(farm, "retry-failed", "the-batch", "--watch")
    assert (done.code, done.json["parent_id"]) == (0, BATCH["id"])
    assert (watched.code, watched.json["id"]) == (0, "the-retry")
    assert [(request.method, request.path) for request in farm.requests[1:]] == [
        ("POST", "/v1/batches/the-batch/retry-failed"),
        ("GET", "/v1/batches/the-retry"),
    ]


def test_a_dry_run_submits_nothing_and_fails_if_the_batch_would(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(TEXT)
    with fake_farm(accept_batch) as farm:
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), "--dry-run")
        assert (done.code, done.json["upload"], done.json["jobs"]) == (1, "the-upload", DRY_RUN["jobs"])
        assert "Line 12: prompt is empty." in done.err
        assert "--skip-bad leaves them out" in done.err
        done = call(farm, "submit", UPLOAD, "--dry-run", "--skip-bad", "--format=human")
    assert done.code == 0
    lines = {line[:11].strip(): line[11:].strip() for line in done.out.splitlines()}
    assert lines["prompts"] == "about 1,000,000, 19,204 distinct of 19,999"
    assert (lines["read as"], lines["checked"]) == ("csv, GB18030", "the first 20,000")
    assert (lines["takes"], lines["size"], lines["upload"]) == ("144 h (≤ 159 h)", "1.28 TB", UPLOAD)
    assert "女孩们打开了另一世界的大门 — zh-v0, 512×512, 50 of lms, guidance 7.5, seeds 42" in done.out
    tried = "/v1/batches?dry_run=true"
    assert [request.path for request in farm.requests] == ["/v1/uploads", tried, tried]
    assert farm.requests[2].body == {"upload": UPLOAD, "defaults": {}, "skip_bad": True}


def test_columns_are_named_and_kept_as_the_options_say(call: Callable[..., Any]) -> None:
    given = ("--column", "prompt=标题", "--column", "seed= nr", "--keep", "id, 类别,")
    wanted = {"columns": {"prompt": "标题", "seed": "nr"}, "keep": ["id", "类别"]}
    with fake_farm(accept_batch) as farm:
        assert call(farm, "submit", UPLOAD, *given).code == 0
        assert call(farm, "submit", UPLOAD, "--no-header", "--keep=all").code == 0
        assert call(farm, "submit", UPLOAD, "--no-header", "--column=prompt=2", "--keep=").code == 0
        done = call(farm, "submit", UPLOAD, "--column", "prompt")
        assert (done.code, "such as prompt=caption" in done.err) == (2, True)
        done = call(farm, "submit", UPLOAD, "--dry-run", "--skip-bad", "--format=human")
    bodies = [{key: request.body.get(key) for key in ("columns", "keep")} for request in farm.requests[:3]]
    assert bodies == [
        wanted,
        {"columns": {"prompt": "1"}, "keep": "all"},
        {"columns": {"prompt": "2"}, "keep": []},
    ]
    taken = "caption → prompt, id → kept, Unnamed: 0 → left out (it is an index that pandas wrote)"
    assert taken in " ".join(done.out.split())


def test_a_dry_run_names_doubles(call: Callable[..., Any]) -> None:
    twice = DRY_RUN | {"prompts": 2000, "checked_prompts": 2000, "is_estimate": False, "bad": 0, "distinct": 288}
    with fake_farm(lambda request: Response(200, twice)) as farm:
        done = call(farm, "submit", UPLOAD, "--dry-run", "--format=human")
    assert "2,000, 288 distinct of 2,000\n" in done.out


def test_matrix_options_make_a_matrix(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(TEXT)
    given = ("--matrix", "steps=20,50", "--matrix", "guidance=3,7.5", "--matrix", "model:scheduler=zh-v0:lms,15:dpm++")
    with fake_farm(accept_batch) as farm:
        assert call(farm, "submit", str(tmp_path / "prompts.txt"), *given).code == 0
        assert farm.requests[1].body["matrix"] == {
            "steps": [20, 50],
            "guidance": [3, 7.5],
            "zip": [{"model": ["zh-v0", 15], "scheduler": ["lms", "dpm++"]}],
        }
        for wrong in ("steps", "steps=", "steps=20,,50", "=3", "model:scheduler=zh-v0", "model:=zh-v0:lms"):
            done = call(farm, "submit", str(tmp_path / "prompts.txt"), "--matrix", wrong)
            assert (done.code, "steps=20,50" in done.err) == (2, True), wrong
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), "--matrix=steps=2", "--matrix=steps=3")
        assert (done.code, "has steps twice" in done.err) == (2, True)


def test_templates_are_asked_for_and_wildcards_are_read_from_a_folder(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(TEXT)
    folder = tmp_path / "wildcards"
    (folder / "形状").mkdir(parents=True)
    (folder / "颜色.txt").write_bytes("\ufeff# colours\r\n红\r\n\r\n 3::蓝 \r\n".encode())
    (folder / "形状" / "平面.txt").write_text("圆形\n正方形", "utf-8")
    (folder / "notes.md").write_text("nothing")
    with fake_farm(accept_batch) as farm:
        for options, template in (
            (["--template"], {"samples": None, "wildcards": {}}),
            (["--template-samples=9"], {"samples": 9, "wildcards": {}}),
            (
                [f"--wildcards={folder}"],
                {"samples": None, "wildcards": {"颜色": ["红", "3::蓝"], "形状/平面": ["圆形", "正方形"]}},
            ),
        ):
            assert call(farm, "submit", str(tmp_path / "prompts.txt"), *options).code == 0
            assert farm.requests[-1].body["template"] == template
        sent = len(farm.requests)
        (folder / "坏.txt").write_bytes(b"\xff")
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), f"--wildcards={folder}")
        assert (done.code, "is not valid UTF-8" in done.err) == (2, True)
        (folder / "坏.txt").write_bytes(b"a" * 1_000_001)
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), f"--wildcards={folder}")
        assert (done.code, "larger than 1,000,000 bytes" in done.err) == (2, True)
        for n in range(201):
            (folder / "形状" / f"{n}.txt").write_text("a")
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), f"--wildcards={folder / '形状'}")
        assert (done.code, "more than 200 .txt files" in done.err) == (2, True)
        (tmp_path / "empty").mkdir()
        done = call(farm, "submit", str(tmp_path / "prompts.txt"), f"--wildcards={tmp_path / 'empty'}")
        assert (done.code, "There is no .txt file" in done.err) == (2, True)
        assert len(farm.requests) == sent  # nothing is uploaded for nothing


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({}, 0, ""),
        ({"images": IMAGES | {"stored": 7, "failed": 1}}, 6, "1 of 8 pictures are missing: 1 failed"),
        ({"images": IMAGES | {"stored": 6, "flagged": 2}}, 6, "2 were refused by the safety checker"),
        ({"images": IMAGES | {"stored": 0, "failed": 8}}, 1, "8 of 8 pictures are missing"),
        ({"images": IMAGES | {"stored": 3, "cancelled": 5}, "cancelled_at": WHEN}, 1, "was cancelled"),
        ({"error": {"code": "invalid", "message": "Line 7: it is not JSON."}}, 1, "Line 7: it is not JSON."),
    ],
)
def test_a_watch_ends_as_its_batch_did(call: Callable[..., Any], changes: Any, code: int, expected: str) -> None:
    with fake_farm(lambda request: Response(body=batch(**changes))) as farm:
        done = call(farm, "watch", "the-batch")
    assert (done.code, done.json["id"]) == (code, BATCH["id"])
    assert expected in done.err


def test_a_watch_prints_each_state_and_survives_an_outage(call: Callable[..., Any]) -> None:
    some = IMAGES | {"total": None, "open": 6, "stored": 2}
    responses = iter(
        [
            Response(body=batch(state="checking", images=IMAGES | {"total": None, "stored": 0}, prompts=None, jobs=0)),
            Response(503, {"detail": "The database is down."}),
            Response(status=502),
            Response(body=batch(state="expanding", images=some, prompts=2, jobs=1, running=4)),
            Response(body=batch(state="running", images=some | {"total": 8, "open": 3, "stored": 5})),
        ]
    )
    with fake_farm(lambda request: next(responses, Response(body=batch()))) as farm:
        done = call(farm, "watch", "the-batch")
    assert done.code == 0
    lines_of_batch = [line.split(" ", 1)[1] for line in done.err.splitlines() if line.startswith(BATCH["id"])]
    assert [line.split(":")[0] for line in lines_of_batch] == ["checking", "expanding", "running", "ended"]
    assert "4 running, 2 waiting, 2 stored" in lines_of_batch[1]
    assert lines_of_batch[2].endswith("5 stored, 120 a minute, 26 min (≤ 31 min) left")
    assert [line for line in done.err.splitlines() if not line.startswith(BATCH["id"])] == [
        "The farm does not answer; trying again every second.",
        "The farm answers again.",
    ]
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["state"] for line in lines] == ["checking", "expanding", "running", "ended"]


def test_a_watch_into_a_pipe_prints_a_line_a_state_or_ten_seconds(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched() -> tuple[list[str], list[str]]:
        running = [IMAGES | {"open": 8 - stored, "stored": stored} for stored in range(8)]
        responses = iter([Response(body=batch(state="running", images=images)) for images in running])
        with fake_farm(lambda request: next(responses, Response(body=batch()))) as farm:
            done = call(farm, "watch", "the-batch")
        lines = [line.split(" ")[1] for line in done.err.splitlines() if line.startswith(BATCH["id"])]
        return lines, [json.loads(line)["state"] for line in done.out.splitlines()]

    assert watched() == (["running:", "ended:"], ["running", "ended"])
    monkeypatch.setattr("cli.watch.LINE_S", 0.0)
    assert watched() == (["running:"] * 8 + ["ended:"], ["running"] * 8 + ["ended"])


def test_an_estimate_that_nobody_knows_says_why(call: Callable[..., Any]) -> None:
    why = {"code": "no_worker", "message": "No worker that takes work serves zh-v0."}
    guess = {**DRY_RUN["estimate"], "seconds": None, "seconds_p90": None, "unknown": why}
    with fake_farm(lambda request: Response(body={**DRY_RUN, "estimate": guess, "bad": 0, "bad_lines": []})) as farm:
        shown = call(farm, "submit", UPLOAD, "--dry-run", "--format=human").out
    assert f"takes        {why['message']}" in shown
    unknown = batch(state="running", eta_seconds=None, eta_seconds_p90=None, eta_unknown=why)
    with fake_farm(lambda request: Response(body=unknown)) as farm:
        assert why["message"] in call(farm, "pause", "the-batch", "--format=human").out


def test_the_tier_of_a_large_batch_is_changed_in_several_requests(call: Callable[..., Any]) -> None:
    responses = iter([{"batch": BATCH, "changed": 10_000, "goes_on": True}])
    last = {"batch": {**BATCH, "tier": "interactive"}, "changed": 7, "goes_on": False}
    with fake_farm(lambda request: Response(body=next(responses, last))) as farm:
        done = call(farm, "tier", "the-batch", "interactive")
    assert (done.code, done.json["tier"]) == (0, "interactive")
    assert "10,000 jobs are changed" in done.err
    asked = [(request.path, request.body) for request in farm.requests]
    assert asked == [("/v1/batches/the-batch/tier", {"tier": "interactive"})] * 2


def test_a_watch_prints_why_a_batch_paused(call: Callable[..., Any]) -> None:
    why = "Of its last 52 images 11 failed and 2 were refused by the safety checker."
    responses = iter(
        [Response(body=batch(state="paused", paused_because=why, images=IMAGES | {"open": 3, "stored": 5}))]
    )
    with fake_farm(lambda request: next(responses, Response(body=batch()))) as farm:
        done = call(farm, "watch", "the-batch")
    assert f"{why} To resume it: " in done.err
    assert "batch resume the-batch" in done.err
    assert done.err.count("a minute") == 0


def test_a_watch_that_times_out_prints_how_to_resume(call: Callable[..., Any]) -> None:
    with fake_farm(lambda request: Response(body=batch(state="paused"))) as farm:
        done = call(farm, "watch", "the-batch", "--timeout=0.01")
    assert done.code == 7
    assert "batch watch the-batch" in done.err
