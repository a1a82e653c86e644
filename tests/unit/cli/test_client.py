"""The command line against a farm that refuses, does not answer, or answers wrongly."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cli.client import Client
from cli.commands.demo import wait_for_worker
from cli.download import RemoteFile, download_file
from cli.errors import Failure, FarmUnavailable
from cli.shell import Shell
from tests.support.command_line import DROP_CONNECTION, CommandLine, Request, Response, fake_farm

PICTURE = b"a picture"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("HUAFANG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cli.client.RETRY_DELAYS_S", (0, 0, 0, 0))
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


def job(state: str = "succeeded", *images: str) -> dict:
    return {
        "id": "the-job",
        "state": state,
        "recipe": {"prompt": "红色的圆形", "model": "mini-zh", "steps": 20},
        "images": [
            {"id": f"image-{index}", "index": index, "state": state, "format": "png", "seed": index}
            | ({"sha256": hashlib.sha256(PICTURE).hexdigest()} if state == "stored" else {})
            for index, state in enumerate(images or ("stored",))
        ],
        "progress": None,
        "warnings": ["mini-zh is a toy"],
    }


def render(request: Request) -> Response:
    if request.path.endswith("/content"):
        return Response(body=PICTURE)
    return Response(201 if request.method == "POST" else 200, job())


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 3), (403, 3), (404, 4), (409, 5), (413, 2), (422, 2), (429, 1), (500, 1), (503, 1), (504, 7)],
)
def test_a_problem_is_one_sentence_and_an_exit_code(call: CommandLine, status: int, code: int) -> None:
    problem = {"title": "No", "status": status, "detail": "steps is 0; it must be 1 to 150.", "code": "invalid"}
    with fake_farm(lambda request: Response(status, problem, {"Content-Type": "application/problem+json"})) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("huafang: steps is 0; it must be 1 to 150.")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "response",
    [Response(502, b"<html>Bad gateway</html>"), Response(200, b"<html>Welcome to nginx</html>"), Response(500, ["?"])],
)
def test_a_server_that_is_no_farm_is_one_sentence(call: CommandLine, response: Response) -> None:
    with fake_farm(lambda request: response) as farm:
        done = call("--url", farm.url, "models", "ls")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "bug" not in done.err


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "nonsense", "http://", "ftp://there", "http://[", "http://☃.a b"]
)
def test_an_address_where_nothing_answers(call: CommandLine, url: str) -> None:
    done = call("--url", url, "models", "ls")
    assert done.code in (1, 2)
    assert len(done.err.splitlines()) == 1
    assert "bug" not in done.err


def test_a_lost_connection_makes_one_job(call: CommandLine) -> None:
    """The answer to a submission is lost: it is sent again under the same Idempotency-Key."""
    lost: list[Request] = []

    def answer(request: Request) -> Response:
        if request.method == "POST" and len(lost) < 2:
            lost.append(request)
            return DROP_CONNECTION
        return render(request)

    with fake_farm(answer) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形")
    assert done.code == 0
    keys = [request.headers["idempotency-key"] for request in farm.requests if request.method == "POST"]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submissions_are_two_jobs(call: CommandLine) -> None:
    with fake_farm(render) as farm:
        assert call("--url", farm.url, "generate", "红色的圆形").code == 0
        assert call("--url", farm.url, "generate", "红色的圆形").code == 0
    assert len({request.headers["idempotency-key"] for request in farm.requests if request.method == "POST"}) == 2


def test_options_that_are_not_given_are_not_sent(call: CommandLine) -> None:
    with fake_farm(render) as farm:
        call("--url", farm.url, "generate", "红色的圆形", "--size", "512x256", "--seed", "0", "--negative", "")
    sent = {"prompt": "红色的圆形", "width": 512, "height": 256, "seed": 0, "negative_prompt": ""}
    assert farm.requests[0].body == sent


def accept_upload(request: Request) -> Response:
    return Response(201, {"id": "the-upload"}) if request.path == "/v1/uploads" else render(request)


def test_input_images_are_uploaded_or_named(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PICTURE)
    mask, options = "019c2f6e-7d41-7a52-8e0c-3f1d2c4b5a69", ("--strength", "0.5", "--lora", "ink:0.8", "--lora", "oil")
    with fake_farm(accept_upload) as farm:
        done = call("--url", farm.url, "generate", "猫", "--source", "photo.jpg", "--mask", mask, *options)
    assert done.code == 0
    uploaded, submitted, *_ = farm.requests
    assert (uploaded.path, uploaded.body) == ("/v1/uploads", PICTURE)
    assert submitted.body == {
        "prompt": "猫",
        "source": "the-upload",
        "mask": mask,
        "strength": 0.5,
        "lora": [{"name": "ink", "weight": 0.8}, {"name": "oil", "weight": 1}],
    }


@pytest.mark.parametrize("wrong", [("--source", "nowhere.png"), ("--mask", "019c"), ("--lora", "ink:much")])
def test_an_input_image_that_is_neither_file_nor_id_is_refused_before_anything_is_sent(
    call: CommandLine, wrong: tuple[str, str]
) -> None:
    with fake_farm(accept_upload) as farm:
        assert call("--url", farm.url, "generate", "猫", *wrong).code == 2
    assert farm.requests == []


def test_pictures_are_saved_and_named(call: CommandLine, tmp_path: Path) -> None:
    with fake_farm(render) as farm:
        done = call("--url", farm.url, "--format", "human", "generate", "红色的圆形", "--out", "mine")
    assert done.out == "mine/the-job-0.png\n"
    assert (tmp_path / "mine" / "the-job-0.png").read_bytes() == PICTURE
    assert "mini-zh is a toy" in done.err


def test_a_damaged_picture_is_not_saved(call: CommandLine, tmp_path: Path) -> None:
    with fake_farm(
        lambda request: Response(body=b"another") if request.path.endswith("content") else render(request)
    ) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形")
    assert done.code == 1
    assert "sha256" in done.err
    assert list((tmp_path / "renders").iterdir()) == []


@pytest.mark.parametrize(
    ("ended", "code", "saved"),
    [
        (job("failed", "stored", "failed"), 6, 1),
        (job("failed", "failed", "failed"), 1, 0),
        (job("succeeded", "stored", "flagged"), 6, 1),
        (job("cancelled", "cancelled"), 1, 0),
        (job("cancelled", "stored", "cancelled"), 1, 1),
    ],
)
def test_missing_pictures_are_an_exit_code(
    call: CommandLine, tmp_path: Path, ended: dict, code: int, saved: int
) -> None:
    def answer(request: Request) -> Response:
        return Response(body=PICTURE) if request.path.endswith("content") else Response(body=ended)

    with fake_farm(answer) as farm:
        done = call("--url", farm.url, "--format", "quiet", "generate", "红色的圆形")
    assert done.code == code
    assert len(done.out.splitlines()) == saved == len(list((tmp_path / "renders").iterdir()))


def test_a_watch_survives_a_short_outage(call: CommandLine) -> None:
    answers = [
        Response(body=job("running", "running")),
        DROP_CONNECTION,
        Response(503, {"title": "Away"}),
        Response(body=job()),
    ]
    with fake_farm(lambda request: answers.pop(0)) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert done.code == 0
    assert done.json["state"] == "succeeded"
    assert answers == []


def events(*sent: tuple[str, dict] | str) -> Response:
    """A stream of events; a string is a comment in it."""
    lines = [
        f": {one}\n\n" if isinstance(one, str) else f"event: {one[0]}\ndata: {json.dumps(one[1])}\n\n" for one in sent
    ]
    return Response(body="".join(["retry: 1000\n\n", *lines]).encode(), headers={"Content-Type": "text/event-stream"})


def test_a_watch_reads_events_after_one_request(call: CommandLine) -> None:
    stream = events(
        ("state", {"state": "running"}),
        ("progress", {"step": 3, "steps": 20}),
        ("state", {"state": "succeeded"}),
        ("image", job()["images"][0]),
        ("end", job()),
    )
    with fake_farm(
        lambda request: stream if request.path.endswith("/events") else Response(body=job("queued", "queued"))
    ) as farm:
        done = call("--url", farm.url, "--key", "huaf_given", "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json) == (0, job())
    assert [line.split()[1] for line in done.err.splitlines()] == ["queued", "running", "succeeded"]
    assert [request.path for request in farm.requests] == ["/v1/jobs/the-job", "/v1/jobs/the-job/events"]


def test_a_watch_polls_after_its_stream_broke(call: CommandLine) -> None:
    answers = [
        Response(body=job("queued", "queued")),
        events(("state", {"state": "running"})),
        Response(body=job("running", "running")),
        events("ping"),
        Response(body=job("running", "running")),  # for the ping
        Response(body=job()),
    ]
    with fake_farm(lambda request: answers.pop(0)) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json["state"], answers) == (0, "succeeded", [])


@pytest.mark.parametrize(
    "no_stream", [Response(404, {"title": "Not Found", "detail": "Nothing."}), Response(body={}), DROP_CONNECTION]
)
def test_a_watch_polls_where_there_is_no_stream(call: CommandLine, no_stream: Response) -> None:
    answers = [job("queued", "queued"), job("running", "running"), job()]
    with fake_farm(
        lambda request: no_stream if request.path.endswith("/events") else Response(body=answers.pop(0))
    ) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json["state"], answers) == (0, "succeeded", [])
    assert [request.path for request in farm.requests].count("/v1/jobs/the-job/events") == 1


def test_a_watch_that_times_out_prints_how_to_resume(call: CommandLine) -> None:
    with fake_farm(lambda request: Response(body=job("queued", "queued"))) as farm:
        done = call("--url", farm.url, "jobs", "watch", "the-job", "--timeout", "0.01")
    assert done.code == 7
    assert "jobs watch the-job" in done.err


def test_some_of_several_is_partly_failed(call: CommandLine) -> None:
    def answer(request: Request) -> Response:
        return (
            Response(body=job())
            if "good" in request.path
            else Response(404, {"title": "Gone", "detail": "There is no job."})
        )

    with fake_farm(answer) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "cancel", "good", "bad")
        assert done.code == 6
        assert [found["id"] for found in done.json] == ["the-job"]
        assert call("--url", farm.url, "jobs", "cancel", "bad").code == 4


def test_the_local_key_goes_to_the_local_farm_only(call: CommandLine, tmp_path: Path) -> None:
    with fake_farm(render) as local, fake_farm(render) as other:
        home = tmp_path / "home"
        home.mkdir()
        port = int(local.url.rpartition(":")[2])
        (home / "farm.json").write_text(json.dumps({"listen": "127.0.0.1", "ports": {"api": port}}))
        (home / "admin-key").write_text("huaf_secret\n")
        call("models", "ls")
        call("--url", other.url, "models", "ls")
        call("--url", other.url, "--key", "huaf_given", "models", "ls")
    assert local.requests[0].headers["authorization"] == "Bearer huaf_secret"
    assert [request.headers.get("authorization") for request in other.requests] == [None, "Bearer huaf_given"]


def test_a_key_is_not_sent_to_the_image_store(call: CommandLine) -> None:
    with fake_farm(lambda request: Response(body=PICTURE)) as store:

        def answer(request: Request) -> Response:
            if request.path.endswith("/content"):
                return Response(302, headers={"Location": f"{store.url}/signed"})
            return render(request)

        with fake_farm(answer) as farm:
            assert call("--url", farm.url, "--key", "huaf_given", "generate", "红色的圆形").code == 0
    assert "authorization" not in store.requests[0].headers
    assert farm.requests[0].headers["authorization"] == "Bearer huaf_given"


def test_a_link_that_ignores_ranges_gives_the_whole_file(tmp_path: Path) -> None:
    """The partial file is replaced, not appended to, and not counted twice."""
    data, progress = bytes(range(256)) * 8, list[int]()
    (tmp_path / "shard.tar.part").write_bytes(data[:1000])
    with fake_farm(lambda request: Response(body=data)) as store:
        file = RemoteFile("the-dataset", "0", "shard.tar", hashlib.sha256(data).hexdigest(), f"{store.url}/signed")
        download_file(Client(store.url, None), file, tmp_path, progress.append)
    assert (tmp_path / "shard.tar").read_bytes() == data
    assert [request.headers.get("range") for request in store.requests] == ["bytes=1000-"]
    assert sum(progress) == len(data)


def test_a_download_goes_on_while_bytes_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks more often than it is retried when nothing arrives."""
    monkeypatch.setattr("cli.download.RETRY_DELAYS_S", (0, 0))
    data = bytes(range(256)) * 8000

    def answer(request: Request) -> Response:
        offset = int(request.headers.get("range", "bytes=0-")[len("bytes=") : -1])
        rest = data[offset:]
        return Response(206 if offset else 200, rest[:300_000], {"Content-Length": str(len(rest))})

    with fake_farm(answer) as store:
        file = RemoteFile("the-dataset", "0", "shard.tar", hashlib.sha256(data).hexdigest(), f"{store.url}/signed")
        download_file(Client(store.url, None), file, tmp_path, lambda size: None)
    assert (tmp_path / "shard.tar").read_bytes() == data
    assert len(store.requests) > 4
    (tmp_path / "shard.tar").unlink()
    with fake_farm(lambda request: DROP_CONNECTION) as store, pytest.raises(FarmUnavailable):
        file = replace(file, url=f"{store.url}/signed")
        download_file(Client(store.url, None), file, tmp_path, lambda size: None)
    assert len(store.requests) == 3


@pytest.mark.parametrize("path", ["../shard.tar", "data/../../shard.tar", "{outside}/shard.tar"])
def test_a_file_that_is_listed_outside_of_the_dataset_is_not_written(tmp_path: Path, path: str) -> None:
    """A farm may be another's: it must not choose which files of this machine it replaces."""
    (tmp_path / "shard.tar").write_bytes(b"another file")
    with fake_farm(lambda request: Response(body=PICTURE)) as store:
        digest, link = hashlib.sha256(PICTURE).hexdigest(), f"{store.url}/signed"
        file = RemoteFile("the-dataset", "0", path.format(outside=tmp_path), digest, link)
        with pytest.raises(Failure, match="outside of the dataset"):
            download_file(Client(store.url, None), file, tmp_path / "dataset", lambda size: None)
    assert store.requests == []
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("shard.tar", b"another file")]


def test_a_key_that_is_no_ascii_is_refused(call: CommandLine) -> None:
    done = call("--url", "http://127.0.0.1:1", "--key", "画坊\n", "models", "ls")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1


def test_a_prompt_that_is_not_utf8_is_refused(call: CommandLine) -> None:
    done = call("--url", "http://127.0.0.1:1", "generate", "圆\udcff")
    assert done.code == 2
    assert "UTF-8" in done.err


def test_an_impossible_folder_is_refused_before_the_render(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with fake_farm(render) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形", "--out", "file/renders")
    assert done.code == 1
    assert farm.requests == []


def test_a_demo_without_a_worker_times_out_and_names_the_log() -> None:
    states = ["starting", "ready"]
    worker = {"models": ["mini-zh"]}
    with fake_farm(lambda request: Response(body={"items": [worker | {"state": states.pop(0)}]})) as farm:
        shell = Shell()
        shell.url = farm.url
        wait_for_worker(shell, {"home": "/the/home"}, timeout=30)
    assert states == []
    with fake_farm(lambda request: Response(body={"items": [worker | {"state": "stopped"}]})) as farm:
        shell = Shell()
        shell.url = farm.url
        with pytest.raises(Failure, match="/the/home/logs") as gave_up:
            wait_for_worker(shell, {"home": "/the/home"}, timeout=0)
    assert gave_up.value.exit_code == 7
