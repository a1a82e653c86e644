"""A farm over HTTP. Turns what can go wrong into one sentence and an exit code; knows no command.

A submission carries an Idempotency-Key, so it is sent again when the connection is lost and still makes one job.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from io import SEEK_END
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

from cli.local import called
from cli.shell import TIMED_OUT, Failure

Json = dict[str, Any]
PAUSES = (0.5, 1, 2, 4)  # between tries of a submission, in seconds
TERMINAL = ("succeeded", "failed", "cancelled")
POLL_S, LONGEST_POLL_S = 0.2, 1.0
BLOCK_BYTES = 256_000
UPLOAD_S = 600  # for the farm to take a block, or to store the whole file in the end
AWAY_S = 60  # how long a watch bears a farm that does not answer
SILENCE_S = 20  # how long it bears a stream that brings nothing: there is a ping every 15 s


class Away(Failure):
    """The farm does not answer, or says that it cannot for now: trying again may help."""


class Gone(Failure):
    """A link is no longer good, or what it led to is not there any more."""


class Client:
    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self.key = key
        if key and not (key.isascii() and key.isprintable()):
            raise Failure("The API key is none: it has characters that no key has.", 3)
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(30, connect=5),
                follow_redirects=True,
                # No proxy knows the way to this machine.
                mounts={"all://127.0.0.1": None, "all://localhost": None},
            )
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise Failure(f"{url} is no address of a farm; it looks like http://127.0.0.1:8000.", 2) from None

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Any = None) -> Any:
        return self._json("POST", path, json=body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def pages(self, path: str, limit: int, **params: Any) -> list[Json]:
        """Up to `limit` entries of a list, however many pages that takes."""
        found: list[Json] = []
        cursor: Json = {}
        while len(found) < limit:
            page = self.get(path, limit=min(limit - len(found), 200), **params, **cursor)
            found += page["items"]
            if not page.get("next_cursor"):
                break
            cursor = {"cursor": page["next_cursor"]}
        return found

    def dry_run(self, draft: Json, where: str = "/v1/jobs") -> Json:
        """What a recipe or a batch would be, and an estimate; nothing is submitted."""
        found: Json = self._json("POST", where, json=draft, params={"dry_run": "true"})
        return found

    def submit(self, draft: Json, where: str = "/v1/jobs") -> Json:
        """Submit a recipe, a batch or a dataset; what was made of it."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._patiently(lambda: self._json("POST", where, json=draft, headers=headers))

    def upload(self, file: BinaryIO, media_type: str, tell: Callable[[int], None]) -> Json:
        """Upload a file, a block at a time; `tell` hears how many bytes have gone."""
        headers = {"Content-Type": media_type, "Content-Length": str(file.seek(0, SEEK_END))}

        def blocks() -> Iterator[bytes]:
            file.seek(0)
            while block := file.read(BLOCK_BYTES):
                yield block
                tell(file.tell())

        timeout = httpx.Timeout(UPLOAD_S, connect=5)
        return self._patiently(
            lambda: self._json("POST", "/v1/uploads", content=blocks(), headers=headers, timeout=timeout)
        )

    def follow(self, job_id: str, timeout: float | None = None) -> Iterator[Json]:
        """The job, each time that it has changed, until it has ended. Bears a farm that is away for a while.

        Listens to its events. Where there are none, or they break off, or the time is nearly up, it asks now and then.
        """
        deadline = time.monotonic() + timeout if timeout else float("inf")
        etag, pause, away_since, has_events = "", POLL_S, None, True
        while True:
            try:
                answer = self._send("GET", path("jobs", job_id), headers={"If-None-Match": etag} if etag else {})
                away_since = None
                if answer.status_code != 304:
                    etag, pause = answer.headers.get("ETag", ""), POLL_S
                    yield (job := answer.json())
                    if job["state"] in TERMINAL:
                        return
                if has_events and time.monotonic() < deadline - SILENCE_S:
                    has_events = False
                    for told in self._as_told(job, deadline - SILENCE_S):
                        has_events = True
                        yield told
                        if told["state"] in TERMINAL:
                            return
            except Away:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_S:
                    raise
            if time.monotonic() > deadline:
                raise Failure(f"The job has not ended in time; it goes on: {called()} jobs watch {job_id}", TIMED_OUT)
            time.sleep(pause)
            pause = min(pause * 1.2, LONGEST_POLL_S)

    def _as_told(self, job: Json, until: float) -> Iterator[Json]:
        """The job after each of its events. Ends when they break off: its row can be asked for."""
        address, timeout = path("jobs", job["id"], "events"), httpx.Timeout(5, read=SILENCE_S)
        event: dict[str, str] = {}
        try:
            with self._http.stream("GET", address, timeout=timeout) as answer:
                if answer.status_code != 200 or "text/event-stream" not in answer.headers.get("Content-Type", ""):
                    return
                for line in answer.iter_lines():
                    if line.startswith(":"):  # a ping: why it waits may be another reason by now
                        yield (job := self.get(path("jobs", job["id"])))
                    elif line:
                        name, _, event[name] = line.partition(": ")
                    elif "event" in event:
                        yield (job := changed(job, event["event"], json.loads(event["data"])))
                        event = {}
                    if time.monotonic() > until:
                        return
        except httpx.TransportError:
            return

    def follow_batch(
        self, batch_id: str, timeout: float | None = None, note: Callable[[str], None] = lambda text: None
    ) -> Iterator[Json]:
        """The batch, every second, until it has ended; `note` hears when the farm goes away and comes back."""
        late = f"The batch has not ended in time; it goes on: {called()} batch watch {batch_id}"
        return self._follow(path("batches", batch_id), ("ended",), timeout, late, note)

    def follow_dataset(self, dataset_id: str, timeout: float | None = None) -> Iterator[Json]:
        """The dataset, every second, until it is ready or has failed."""
        late = f"Dataset {dataset_id} is not ready in time; it goes on. Say the same again to get it."
        return self._follow(path("datasets", dataset_id), ("ready", "failed"), timeout, late)

    def _follow(
        self,
        where: str,
        ends: tuple[str, ...],
        timeout: float | None,
        late: str,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Json]:
        """What is there, every second, until its state is one of these. Bears a farm that is away for a while."""
        deadline, away_since = time.monotonic() + timeout if timeout else float("inf"), None
        while True:
            try:
                found = self.get(where)
                if away_since:
                    note("The farm answers again.")
                away_since = None
                yield found
                if found["state"] in ends:
                    return
            except Away:
                if not away_since:
                    note("The farm does not answer; it is asked again every second.")
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_S:
                    raise
            if time.monotonic() > deadline:
                raise Failure(late, TIMED_OUT)
            time.sleep(LONGEST_POLL_S)

    def download(self, image: Json) -> bytes:
        """The bytes of a stored image, which are those that the farm says they are."""
        data: bytes = self._patiently(lambda: self._send("GET", f"/v1/images/{image['id']}/content")).content
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise Failure(f"Image {image['id']} arrived damaged: its sha256 is not the one that the farm recorded.")
        return data

    def save(self, link: str, file: BinaryIO, tell: Callable[[int], None]) -> None:
        """Append what a link leads to, from where the file ends; `tell` hears how many bytes have come.

        Raises Gone when the link is no longer good.
        """
        offset = file.seek(0, SEEK_END)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._links.stream("GET", link, headers=headers) as answer:
                if answer.status_code == 416:  # it was whole
                    return
                if answer.status_code in (403, 404):
                    raise Gone("The image store does not give out a file of the dataset.")
                if answer.status_code >= 400:
                    raise Away(f"The image store answered {answer.status_code}.")
                if answer.status_code == 200:
                    file.seek(0)
                    file.truncate()
                    tell(-offset)  # what was there is counted again
                for block in answer.iter_bytes(BLOCK_BYTES):
                    file.write(block)
                    tell(len(block))
        except httpx.TransportError as error:
            raise Away(f"The image store cannot be reached ({error}).") from None

    @cached_property
    def _links(self) -> httpx.Client:
        """For links to the image store, which carry their own leave and bear no other."""
        mounts = {"all://127.0.0.1": None, "all://localhost": None}
        return httpx.Client(timeout=httpx.Timeout(60, connect=5), mounts=mounts)

    def _patiently(self, send: Callable[[], Any]) -> Any:
        for pause in PAUSES:
            try:
                return send()
            except Away:
                time.sleep(pause)
        return send()

    def _json(self, method: str, path: str, **request: Any) -> Any:
        answer = self._send(method, path, **request)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise Failure(f"What answers at {self.url} is not a Huafang farm.") from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TimeoutException:
            raise Away(f"The farm at {self.url} did not answer in time.", TIMED_OUT) from None
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            raise Away(
                f"The farm at {self.url} cannot be reached ({error}); is it up? See `{called()} status`."
            ) from None
        if answer.status_code >= 400:
            raise refusal(answer)
        return answer


def changed(job: Json, event: str, news: Json) -> Json:
    """The job after an event."""
    match event:
        case "state" if news["state"] not in TERMINAL:  # else the end follows, with all that belongs to it
            return job | news
        case "progress":
            return job | {"progress": news}
        case "image":
            return job | {"images": [news if image["index"] == news["index"] else image for image in job["images"]]}
        case "end":
            return news
    return job


def path(*parts: str) -> str:
    """`/v1/…`, whatever a person gives for an id."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def refusal(answer: httpx.Response) -> Failure:
    """What the farm says about a request that it does not carry out."""
    try:
        problem = answer.json()
        sentence = problem.get("detail") or problem["title"]
    except (ValueError, KeyError, AttributeError):
        sentence = f"The farm answered {answer.status_code} {answer.reason_phrase}."
    if answer.status_code == 401:
        sentence += " Give a key with --key or HUAFANG_KEY."
    if answer.status_code in (429, 502, 503, 504):  # a proxy says 502 while the API starts again
        return Away(sentence, Failure.code_of(answer.status_code))
    return Failure(sentence, Failure.code_of(answer.status_code))
