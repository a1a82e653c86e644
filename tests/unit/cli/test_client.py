"""How the command line bears a farm that refuses, vanishes or lies."""

import hashlib
import json
from pathlib import Path

import pytest

from cli.client import Client
from cli.commands.demo import wait_for_worker
from cli.download import RemoteFile, download_file
from cli.errors import Failure
from cli.shell import Shell
from tests.support.command_line import HANG_UP, Asked, CommandLine, Say, farm_that

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


def renders(asked: Asked) -> Say:
    if asked.path.endswith("/content"):
        return Say(body=PICTURE)
    return Say(201 if asked.method == "POST" else 200, job())


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 3), (403, 3), (404, 4), (409, 5), (413, 2), (422, 2), (429, 1), (500, 1), (503, 1), (504, 7)],
)
def test_a_problem_is_its_detail_and_an_exit_code(call: CommandLine, status: int, code: int) -> None:
    problem = {"title": "No", "status": status, "detail": "steps is 0; it must be 1 to 150.", "code": "invalid"}
    with farm_that(lambda asked: Say(status, problem, {"Content-Type": "application/problem+json"})) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形")
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("huafang: steps is 0; it must be 1 to 150.")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    "said", [Say(502, b"<html>Bad gateway</html>"), Say(200, b"<html>Welcome to nginx</html>"), Say(500, ["?"])]
)
def test_what_is_no_farm_is_said_in_a_sentence(call: CommandLine, said: Say) -> None:
    with farm_that(lambda asked: said) as farm:
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
    lost: list[Asked] = []

    def answer(asked: Asked) -> Say:
        if asked.method == "POST" and len(lost) < 2:
            lost.append(asked)
            return HANG_UP
        return renders(asked)

    with farm_that(answer) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形")
    assert done.code == 0
    keys = [asked.headers["idempotency-key"] for asked in farm.asked if asked.method == "POST"]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submissions_are_two_jobs(call: CommandLine) -> None:
    with farm_that(renders) as farm:
        assert call("--url", farm.url, "generate", "红色的圆形").code == 0
        assert call("--url", farm.url, "generate", "红色的圆形").code == 0
    assert len({asked.headers["idempotency-key"] for asked in farm.asked if asked.method == "POST"}) == 2


def test_what_was_not_given_is_not_sent(call: CommandLine) -> None:
    with farm_that(renders) as farm:
        call("--url", farm.url, "generate", "红色的圆形", "--size", "512x256", "--seed", "0", "--negative", "")
    sent = {"prompt": "红色的圆形", "width": 512, "height": 256, "seed": 0, "negative_prompt": ""}
    assert farm.asked[0].body == sent


def uploads_too(asked: Asked) -> Say:
    return Say(201, {"id": "the-upload"}) if asked.path == "/v1/uploads" else renders(asked)


def test_pictures_to_start_from_are_uploaded_or_named(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PICTURE)
    mask, options = "019c2f6e-7d41-7a52-8e0c-3f1d2c4b5a69", ("--strength", "0.5", "--lora", "ink:0.8", "--lora", "oil")
    with farm_that(uploads_too) as farm:
        done = call("--url", farm.url, "generate", "猫", "--source", "photo.jpg", "--mask", mask, *options)
    assert done.code == 0
    uploaded, submitted, *_ = farm.asked
    assert (uploaded.path, uploaded.body) == ("/v1/uploads", PICTURE)
    assert submitted.body == {
        "prompt": "猫",
        "source": "the-upload",
        "mask": mask,
        "strength": 0.5,
        "lora": [{"name": "ink", "weight": 0.8}, {"name": "oil", "weight": 1}],
    }


@pytest.mark.parametrize("wrong", [("--source", "nowhere.png"), ("--mask", "019c"), ("--lora", "ink:much")])
def test_what_is_neither_a_file_nor_an_id_is_said_before_anything_is_sent(
    call: CommandLine, wrong: tuple[str, str]
) -> None:
    with farm_that(uploads_too) as farm:
        assert call("--url", farm.url, "generate", "猫", *wrong).code == 2
    assert farm.asked == []


def test_pictures_are_saved_and_named(call: CommandLine, tmp_path: Path) -> None:
    with farm_that(renders) as farm:
        done = call("--url", farm.url, "--format", "human", "generate", "红色的圆形", "--out", "mine")
    assert done.out == "mine/the-job-0.png\n"
    assert (tmp_path / "mine" / "the-job-0.png").read_bytes() == PICTURE
    assert "mini-zh is a toy" in done.err


def test_a_damaged_picture_is_not_saved(call: CommandLine, tmp_path: Path) -> None:
    with farm_that(lambda asked: Say(body=b"another") if asked.path.endswith("content") else renders(asked)) as farm:
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
    def answer(asked: Asked) -> Say:
        return Say(body=PICTURE) if asked.path.endswith("content") else Say(body=ended)

    with farm_that(answer) as farm:
        done = call("--url", farm.url, "--format", "quiet", "generate", "红色的圆形")
    assert done.code == code
    assert len(done.out.splitlines()) == saved == len(list((tmp_path / "renders").iterdir()))


def test_a_watch_bears_a_farm_that_is_away_for_a_moment(call: CommandLine) -> None:
    answers = [Say(body=job("running", "running")), HANG_UP, Say(503, {"title": "Away"}), Say(body=job())]
    with farm_that(lambda asked: answers.pop(0)) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert done.code == 0
    assert done.json["state"] == "succeeded"
    assert answers == []


def events(*told: tuple[str, dict] | str) -> Say:
    """A stream; a word is a comment in it."""
    lines = [
        f": {one}\n\n" if isinstance(one, str) else f"event: {one[0]}\ndata: {json.dumps(one[1])}\n\n" for one in told
    ]
    return Say(body="".join(["retry: 1000\n\n", *lines]).encode(), headers={"Content-Type": "text/event-stream"})


def test_a_watch_listens_and_asks_once(call: CommandLine) -> None:
    told = events(
        ("state", {"state": "running"}),
        ("progress", {"step": 3, "steps": 20}),
        ("state", {"state": "succeeded"}),
        ("image", job()["images"][0]),
        ("end", job()),
    )
    with farm_that(lambda asked: told if asked.path.endswith("/events") else Say(body=job("queued", "queued"))) as farm:
        done = call("--url", farm.url, "--key", "huaf_given", "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json) == (0, job())
    assert [line.split()[1] for line in done.err.splitlines()] == ["queued", "running", "succeeded"]
    assert [asked.path for asked in farm.asked] == ["/v1/jobs/the-job", "/v1/jobs/the-job/events"]


def test_a_watch_asks_again_when_its_stream_breaks_off(call: CommandLine) -> None:
    answers = [
        Say(body=job("queued", "queued")),
        events(("state", {"state": "running"})),
        Say(body=job("running", "running")),
        events("ping"),
        Say(body=job("running", "running")),  # for the ping
        Say(body=job()),
    ]
    with farm_that(lambda asked: answers.pop(0)) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json["state"], answers) == (0, "succeeded", [])


@pytest.mark.parametrize("no_stream", [Say(404, {"title": "Not Found", "detail": "Nothing."}), Say(body={}), HANG_UP])
def test_a_watch_does_without_a_stream(call: CommandLine, no_stream: Say) -> None:
    answers = [job("queued", "queued"), job("running", "running"), job()]
    with farm_that(lambda asked: no_stream if asked.path.endswith("/events") else Say(body=answers.pop(0))) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "watch", "the-job")
    assert (done.code, done.json["state"], answers) == (0, "succeeded", [])
    assert [asked.path for asked in farm.asked].count("/v1/jobs/the-job/events") == 1


def test_a_watch_that_takes_too_long_says_how_to_go_on(call: CommandLine) -> None:
    with farm_that(lambda asked: Say(body=job("queued", "queued"))) as farm:
        done = call("--url", farm.url, "jobs", "watch", "the-job", "--timeout", "0.01")
    assert done.code == 7
    assert "jobs watch the-job" in done.err


def test_some_of_several_is_partly_failed(call: CommandLine) -> None:
    def answer(asked: Asked) -> Say:
        return Say(body=job()) if "good" in asked.path else Say(404, {"title": "Gone", "detail": "There is no job."})

    with farm_that(answer) as farm:
        done = call("--url", farm.url, "--format", "json", "jobs", "cancel", "good", "bad")
        assert done.code == 6
        assert [found["id"] for found in done.json] == ["the-job"]
        assert call("--url", farm.url, "jobs", "cancel", "bad").code == 4


def test_the_local_key_goes_to_the_local_farm_only(call: CommandLine, tmp_path: Path) -> None:
    with farm_that(renders) as local, farm_that(renders) as other:
        home = tmp_path / "home"
        home.mkdir()
        port = int(local.url.rpartition(":")[2])
        (home / "farm.json").write_text(json.dumps({"listen": "127.0.0.1", "ports": {"api": port}}))
        (home / "admin-key").write_text("huaf_secret\n")
        call("models", "ls")
        call("--url", other.url, "models", "ls")
        call("--url", other.url, "--key", "huaf_given", "models", "ls")
    assert local.asked[0].headers["authorization"] == "Bearer huaf_secret"
    assert [asked.headers.get("authorization") for asked in other.asked] == [None, "Bearer huaf_given"]


def test_a_key_is_not_sent_along_to_the_image_store(call: CommandLine) -> None:
    with farm_that(lambda asked: Say(body=PICTURE)) as store:

        def answer(asked: Asked) -> Say:
            if asked.path.endswith("/content"):
                return Say(302, headers={"Location": f"{store.url}/signed"})
            return renders(asked)

        with farm_that(answer) as farm:
            assert call("--url", farm.url, "--key", "huaf_given", "generate", "红色的圆形").code == 0
    assert "authorization" not in store.asked[0].headers
    assert farm.asked[0].headers["authorization"] == "Bearer huaf_given"


def test_a_link_that_knows_no_ranges_gives_the_whole_file(tmp_path: Path) -> None:
    """What is there already is replaced, not gone on with, and not counted twice."""
    data, told = bytes(range(256)) * 8, list[int]()
    (tmp_path / "shard.tar.part").write_bytes(data[:1000])
    with farm_that(lambda asked: Say(body=data)) as store:
        file = RemoteFile("the-dataset", "0", "shard.tar", hashlib.sha256(data).hexdigest(), f"{store.url}/signed")
        download_file(Client(store.url, None), file, tmp_path, told.append)
    assert (tmp_path / "shard.tar").read_bytes() == data
    assert [asked.headers.get("range") for asked in store.asked] == ["bytes=1000-"]
    assert sum(told) == len(data)


def test_a_key_that_no_header_can_carry(call: CommandLine) -> None:
    done = call("--url", "http://127.0.0.1:1", "--key", "画坊\n", "models", "ls")
    assert done.code == 3
    assert len(done.err.splitlines()) == 1


def test_a_prompt_that_is_not_text(call: CommandLine) -> None:
    done = call("--url", "http://127.0.0.1:1", "generate", "圆\udcff")
    assert done.code == 2
    assert "UTF-8" in done.err


def test_a_folder_that_cannot_be_is_said_before_the_render(call: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with farm_that(renders) as farm:
        done = call("--url", farm.url, "generate", "红色的圆形", "--out", "file/renders")
    assert done.code == 1
    assert farm.asked == []


def test_a_demo_without_a_worker_gives_up_and_says_where_to_look() -> None:
    states = ["starting", "ready"]
    worker = {"models": ["mini-zh"]}
    with farm_that(lambda asked: Say(body={"items": [worker | {"state": states.pop(0)}]})) as farm:
        shell = Shell()
        shell.url = farm.url
        wait_for_worker(shell, {"home": "/the/home"}, timeout=30)
    assert states == []
    with farm_that(lambda asked: Say(body={"items": [worker | {"state": "stopped"}]})) as farm:
        shell = Shell()
        shell.url = farm.url
        with pytest.raises(Failure, match="/the/home/logs") as gave_up:
            wait_for_worker(shell, {"home": "/the/home"}, timeout=0)
    assert gave_up.value.exit_code == 7
