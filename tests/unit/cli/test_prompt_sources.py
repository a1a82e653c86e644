"""Where `huafang batch submit` reads prompts from: stdin, several files, other hosts, buckets and hubs."""

import io
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.batch_answers import TEXT, accept_batch
from tests.support.command_line import CommandLine, Request, Response, fake_farm


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr("cli.client.RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setattr("cli.client.MAX_POLL_S", 0.01)
    return lambda farm, *given: CommandLine(capsys)("--url", farm.url, "--key=k", "--format=json", "batch", *given)


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_stdin_is_uploaded_and_sent_again_after_an_error(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = iter([Response(503, {"detail": "The image store is down."})])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(TEXT.encode())))
    with fake_farm(lambda request: next(responses, accept_batch(request))) as farm:
        assert call(farm, "submit", "-").code == 0
    assert [request.body for request in farm.requests[:2]] == [TEXT.encode()] * 2
    assert farm.requests[0].headers["content-type"] == "application/octet-stream"


def test_a_file_without_a_known_name_is_left_to_the_farm(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text(TEXT)
    (tmp_path / "prompts.csv.gz").write_bytes(b"\x1f\x8b")
    with fake_farm(accept_batch) as farm:
        assert call(farm, "submit", str(tmp_path / "prompts")).code == 0
        assert call(farm, "submit", str(tmp_path / "prompts.csv.gz")).code == 0
        assert call(farm, "submit", str(tmp_path / "prompts"), "--input-format=csv").code == 0
        assert call(farm, "submit", str(tmp_path / "nothing.txt")).code == 2
        assert call(farm, "submit", str(tmp_path)).code == 2
    sent = [(one.path, one.headers["content-type"]) for one in farm.requests if "uploads" in one.path]
    assert sent == [
        ("/v1/uploads", "application/octet-stream"),
        ("/v1/uploads", "text/csv"),
        ("/v1/uploads?format=csv", "text/csv"),
    ]


def test_each_of_several_files_becomes_a_batch(call: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.csv"):
        (tmp_path / name).write_text(name)
    with fake_farm(accept_batch) as farm:
        done = call(farm, "submit", f"{tmp_path}/*.txt", str(tmp_path / "c.csv"), str(tmp_path / "a.txt"), "--name=画")
        assert (done.code, len(done.json)) == (0, 3)
        assert call(farm, "submit", f"{tmp_path}/*.tsv").code == 2
        dry = call(farm, "submit", f"{tmp_path}/*.txt", "--dry-run")
    assert dry.code == 1
    assert "a.txt: Prompts that cannot be rendered: 1" in dry.err
    uploaded, made, tried = farm.requests[:3], farm.requests[3:6], farm.requests[6:]
    assert [one.body for one in uploaded] == [b"a.txt", b"b.txt", b"c.csv"]
    assert [one.body["name"] for one in made] == ["画 a.txt", "画 b.txt", "画 c.csv"]
    assert [one.path.partition("?")[0] for one in tried] == ["/v1/uploads"] * 2 + ["/v1/batches"] * 2


def test_a_file_whose_name_is_a_pattern_is_that_file(call: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text(name)
    with fake_farm(accept_batch) as farm:
        assert call(farm, "submit", f"{tmp_path}/a[1].txt").code == 0
        assert call(farm, "submit", f"{tmp_path}/a[1-2].txt").code == 0
    assert [one.body for one in farm.requests if one.path == "/v1/uploads"] == [b"a[1].txt", b"a1.txt"]


def test_a_file_is_fetched_from_where_it_lies(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def host(request: Request) -> Response:
        if request.path == "/moved.csv":
            return Response(302, headers={"Location": "/prompts.csv?signed=1"})
        return Response(200, TEXT.encode()) if request.path.startswith("/prompts.csv") else Response(404)

    with fake_farm(accept_batch) as farm, fake_farm(host) as site:
        for path in ("prompts.csv", "moved.csv", "prompts.csv?x=/a.txt"):
            assert call(farm, "submit", f"{site.url}/{path}").code == 0
        missing = call(farm, "submit", f"{site.url}/no.csv")
        unknown = call(farm, "submit", "ftp://host/a.csv")
    assert (missing.code, "404" in missing.err, unknown.code) == (1, True, 2)
    sent = [(one.body, one.headers["content-type"]) for one in farm.requests if one.path == "/v1/uploads"]
    assert sent == [(TEXT.encode(), "text/csv")] * 3


def test_files_are_fetched_from_a_bucket(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="prompts")
        for name in ("a/1.jsonl", "a/2.jsonl", "a/3.csv", "b/4.jsonl"):
            client.put_object(Bucket="prompts", Key=name, Body=name.encode())
        with fake_farm(accept_batch) as farm:
            assert call(farm, "submit", "s3://prompts/a/*.jsonl").code == 0
            assert call(farm, "submit", "s3://prompts/a/3.csv").code == 0
            missing = call(farm, "submit", "s3://prompts/a/9.csv")
            assert call(farm, "submit", "s3://prompts/c/*").code == 2
    finally:
        server.stop()
    assert (missing.code, "s3://prompts/a/9.csv cannot be read" in missing.err) == (1, True)
    bodies = [one.body for one in farm.requests if one.path == "/v1/uploads"]
    assert bodies == [b"a/1.jsonl", b"a/2.jsonl", b"a/3.csv"]


def test_files_are_fetched_from_a_hub(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"data/a.csv": b"prompt\nx\n", "data/b.csv": b"prompt\ny\n", "README.md": b"-"}
    sha = "0" * 40

    def hub(request: Request) -> Response:
        path = request.path.partition("?")[0]
        for name, data in files.items():
            if path.endswith(f"/resolve/main/{name}"):
                start, _, end = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
                return Response(206, data[int(start) : int(end) + 1 if end else None])
        entries: list[dict[str, Any]] = [
            {"type": "file", "path": name, "size": len(data), "oid": sha} for name, data in files.items()
        ]
        if "/paths-info/" in path:
            asked = urllib.parse.parse_qs((request.body or b"").decode())["paths"]
            return Response(200, [one for one in entries if one["path"] in asked])
        if "/tree/" in path:
            if folder := path.partition("/tree/main")[2]:
                return Response(200, [one for one in entries if f"/{one['path']}".startswith(folder)])
            return Response(200, [{"type": "directory", "path": "data", "oid": sha}, entries[-1]])
        return Response(200, {"id": "owner/name", "sha": sha, "siblings": []})

    from huggingface_hub import HfFileSystem, constants

    with fake_farm(accept_batch) as farm, fake_farm(hub) as site:
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        HfFileSystem.clear_instance_cache()
        one = call(farm, "submit", "hf://datasets/owner/name/data/a.csv")
        two = call(farm, "submit", "hf://datasets/owner/name/data/*.csv")
    assert (one.code, two.code) == (0, 0), (one.err, two.err)
    bodies = [sent.body for sent in farm.requests if sent.path == "/v1/uploads"]
    assert bodies == [files["data/a.csv"], files["data/a.csv"], files["data/b.csv"]]
