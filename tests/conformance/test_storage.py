"""What the farm asks of an image store, of every store that it is tried with: Swift (the local farm's) and moto.

What moto does not check (expired and unsigned links) is asked of Swift alone.
"""

import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from common.config import Settings
from common.errors import NotFound, Unavailable, WrongFarm
from common.sentences import Sentence
from common.storage import VERIFIED_S, Storage, image_key

PNG = b"\x89PNG\r\n" + bytes(range(256)) * 400


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["swift", "moto"])
def of_store(request: pytest.FixtureRequest) -> Settings:
    """Settings whose bucket may not be there yet."""
    if request.param == "swift":
        settings: Settings = request.getfixturevalue("settings")
        return settings.model_copy(update={"s3_bucket": f"new-{uuid4().hex}"})
    url = request.getfixturevalue("moto")
    return Settings(s3_endpoint_url=url, s3_bucket=f"b-{uuid4().hex}", s3_access_key="a", s3_secret_key="s")


@pytest.fixture
def store(of_store: Settings) -> Storage:
    storage = Storage(of_store)
    storage.ensure_bucket()
    return storage


def key() -> str:
    return image_key(uuid4(), 0, uuid4(), "png")


def test_bytes_come_back_as_they_went_in(store: Storage) -> None:
    here = key()
    store.put(here, PNG, "image/png")
    assert store.get(here) == PNG
    store.put(here, b"", "image/png")
    assert store.get(here) == b""


def test_blocks_are_stored_as_they_come(store: Storage) -> None:
    here, sizes = key(), [0, 1, 3_000_000, 7, 9_000_000, 8_000_000]
    store.put_blocks(here, (bytes([size % 251]) * size for size in sizes), "image/png")
    assert store.get(here) == b"".join(bytes([size % 251]) * size for size in sizes)
    store.put_blocks(here, iter(()), "image/png")
    assert store.get(here) == b""


@pytest.mark.parametrize("size", [10, 9_000_000])
def test_what_breaks_off_is_not_stored(store: Storage, size: int) -> None:
    def blocks() -> Iterator[bytes]:
        yield bytes(size)
        raise LookupError("enough")

    here = key()
    with pytest.raises(LookupError, match="enough"):
        store.put_blocks(here, blocks(), "image/png")
    with pytest.raises(NotFound):
        store.get(here)


def test_what_is_not_there_is_said_to_be_so(store: Storage) -> None:
    with pytest.raises(NotFound):
        store.get(key())


def test_deleting_is_final_and_may_be_repeated(store: Storage) -> None:
    here, there = key(), key()
    store.put(here, PNG, "image/png")
    for _ in range(2):
        store.delete([here, there])
    with pytest.raises(NotFound):
        store.get(here)


def test_many_are_deleted_in_one_request(store: Storage) -> None:
    here, there = [key() for _ in range(3)], key()
    for one in (*here, there):
        store.put(one, PNG, "image/png")
    for _ in range(2):
        assert store.delete_many([*here, key()]) == []
    assert store.delete_many([]) == []
    for one in here:
        with pytest.raises(NotFound):
            store.get(one)
    assert store.get(there) == PNG


def test_what_lies_below_a_prefix_is_listed(store: Storage) -> None:
    ours, others = f"datasets/{uuid4()}/", f"datasets/{uuid4()}/"
    keys = [f"{ours}{name}" for name in ("README.md", "data/红.tar", "manifest.json")]
    for one in (*keys, f"{others}README.md"):
        store.put(one, b"x", "text/plain")
    assert [one.key for one in store.list_objects(ours)] == sorted(keys)
    assert len(store.list_objects(ours, limit=2)) == 2
    assert store.list_objects(f"datasets/{uuid4()}/") == []


def test_a_link_gives_the_bytes_and_their_media_type_to_anyone(store: Storage) -> None:
    here = key()
    store.put(here, PNG, "image/webp")
    answer = httpx.get(store.link(here))
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, PNG, "image/webp")


def test_links_start_with_the_public_address_and_end_within_a_quarter_of_an_hour(of_store: Settings) -> None:
    link = urlsplit(Storage(of_store.model_copy(update={"s3_public_url": "https://pictures.example"})).link(key()))
    assert (link.scheme, link.netloc) == ("https", "pictures.example")
    assert link.path.startswith(f"/{of_store.s3_bucket}/images/")
    assert int(parse_qs(link.query)["X-Amz-Expires"][0]) <= 900


def test_a_bucket_is_made_once(of_store: Settings) -> None:
    storage = Storage(of_store)
    with pytest.raises(NotFound):
        storage.check()
    storage.ensure_bucket()
    storage.ensure_bucket()
    storage.check()


def test_a_bucket_is_marked_once_unless_its_mark_is_replaced(store: Storage) -> None:
    assert store.read_mark() is None
    store.write_mark(b"first", replace=False)
    store.write_mark(b"second", replace=False)
    assert store.read_mark() == b"first"
    store.write_mark(b"third", replace=True)
    assert store.read_mark() == b"third"


def test_a_bucket_that_is_missing_is_unavailable(of_store: Settings) -> None:
    storage = Storage(of_store, attempts=1)
    for call in (lambda: storage.get("k"), lambda: storage.put("k", b"", "image/png"), storage.read_mark):
        with pytest.raises(Unavailable, match="bucket"):
            call()


def test_a_store_is_verified_before_its_first_use_after_a_failure_and_now_and_then(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    store.verify_by(lambda: calls.append("verified"))
    here = key()
    for _ in range(3):
        store.put(here, PNG, "image/png")
    assert len(calls) == 1

    bucket, store.bucket = store.bucket, "missing"
    with pytest.raises(Unavailable):
        store.put(here, PNG, "image/png")
    store.bucket = bucket
    assert store.get(here) == PNG
    assert len(calls) == 2

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + VERIFIED_S + 1)
    assert store.get(here) == PNG
    assert len(calls) == 3


def test_nothing_is_sent_to_a_store_that_is_refused(store: Storage) -> None:
    def refuse() -> None:
        raise WrongFarm(Sentence("another's", "another", {}))

    here, there = key(), key()
    store.put(here, PNG, "image/png")
    store.verify_by(refuse)
    for call in (lambda: store.put(there, PNG, "image/png"), lambda: store.delete([here]), lambda: store.get(here)):
        with pytest.raises(WrongFarm):
            call()
    store.verify_by(lambda: None)
    assert store.get(here) == PNG
    with pytest.raises(NotFound):
        store.get(there)


def test_a_store_that_is_away_is_unavailable(of_store: Settings) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        away = Storage(of_store.model_copy(update={"s3_endpoint_url": url}), attempts=1)
        for call in (away.check, lambda: away.get("k"), lambda: away.put("k", b"", "image/png")):
            with pytest.raises(Unavailable, match="down"):
                call()


def put_with(settings: Settings, **change: Any) -> None:
    Storage(settings.model_copy(update=change), attempts=1).put("k", b"x", "image/png")


def test_swift_refuses_wrong_credentials(settings: Settings) -> None:
    with pytest.raises(Unavailable, match="credentials"):
        put_with(settings, s3_secret_key=SecretStr("wrong"))


def test_swift_honours_only_signed_links_and_only_in_time(settings: Settings) -> None:
    storage, here = Storage(settings), key()
    storage.put(here, PNG, "image/png")
    link = storage.link(here, seconds=1)
    assert httpx.get(link.partition("?")[0]).status_code in (400, 403)
    assert httpx.get(link.replace("Signature=", "Signature=0")).status_code == 403
    deadline = time.monotonic() + 10
    while (status := httpx.get(link).status_code) == 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert status == 403
