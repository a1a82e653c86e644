"""A client of the farm's HTTP API. Every error becomes a Failure: a sentence and an exit code. Knows no command.

A submission carries an Idempotency-Key, so it can be sent again after a lost connection and still makes one job.
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

from cli import sentence
from cli.errors import (
    AUTH,
    TIMED_OUT,
    USAGE,
    Deleted,
    Failure,
    FarmUnavailable,
    LinkExpired,
    failure_of,
    program_name,
)
from cli.proxy import ProxyTransport

Json = dict[str, Any]
RETRY_DELAYS_S = (0.5, 1, 2, 4)
TERMINAL = ("succeeded", "failed", "cancelled")
MIN_POLL_S, MAX_POLL_S = 0.2, 1.0
BLOCK_BYTES = 256_000
UPLOAD_TIMEOUT_S = 600  # for the farm to read a block, or to store the whole file at the end
MAX_OUTAGE_S = 60  # a watch ends when the farm has not answered for so long
STREAM_TIMEOUT_S = 20  # a stream of events without a ping for so long is broken: there is one every 15 s


class Client:
    def __init__(self, url: str, key: str | None) -> None:
        """Raises Failure for an address or a key that HTTP cannot carry."""
        self.url = url
        self.key = key
        if key and not (key.isascii() and key.isprintable()):
            raise Failure(sentence("key_malformed"), AUTH)
        try:
            self._http = httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx.Timeout(30, connect=5),
                follow_redirects=True,
                transport=ProxyTransport(),
                trust_env=False,
            )
        except (httpx.InvalidURL, UnicodeError, ValueError):
            raise Failure(sentence("url_malformed", url=url), USAGE) from None

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Any = None) -> Any:
        return self._json("POST", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        return self._json("PATCH", path, json=body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def tombstone(self, path: str) -> Json:
        """What the farm says of a thing that was deleted."""
        try:
            self._send("GET", path)
        except Deleted as deleted:
            return deleted.tombstone
        raise Failure(sentence("not_deleted", path=path))

    def pages(self, path: str, limit: int, **params: Any) -> list[Json]:
        """Up to `limit` entries of a list, from as many pages as that takes."""
        found: list[Json] = []
        cursor: Json = {}
        while len(found) < limit:
            page = self.get(path, limit=min(limit - len(found), 200), **params, **cursor)
            found += page["items"]
            if not page.get("next_cursor"):
                break
            cursor = {"cursor": page["next_cursor"]}
        return found

    def csv_pages(self, path: str, limit: int, **params: Any) -> Iterator[str]:
        """The same as CSV: tables of up to `limit` lines together; only the first one has the heading."""
        cursor, found = None, 0
        while found < limit:
            size = min(limit - found, 200)
            answer = self._send("GET", path, params={**params, "format": "csv", "limit": size, **(cursor or {})})
            table = answer.text.replace("\r\n", "\n").rstrip("\n")
            yield table.partition("\n")[2] if cursor else table
            found += size
            if "next" not in answer.links:
                break
            cursor = {"cursor": httpx.URL(answer.links["next"]["url"]).params["cursor"]}

    def dry_run(self, draft: Json, path: str = "/v1/jobs") -> Json:
        """The resolved recipe or batch and an estimate; nothing is submitted."""
        found: Json = self._json("POST", path, json=draft, params={"dry_run": "true"})
        return found

    def submit(self, draft: Json, path: str = "/v1/jobs") -> Json:
        """Submit a recipe, a batch or a dataset, and return the new resource."""
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        return self._with_retries(lambda: self._json("POST", path, json=draft, headers=headers))

    def upload(
        self, file: BinaryIO, media_type: str, on_progress: Callable[[int], None], format: str | None = None
    ) -> Json:
        """Upload a seekable file in blocks; `on_progress` gets the number of bytes sent so far.

        `format`: of prompts, whatever the media type and the bytes say.
        """
        params = {"format": format} if format else None
        headers = {"Content-Type": media_type, "Content-Length": str(file.seek(0, SEEK_END))}

        def blocks() -> Iterator[bytes]:
            file.seek(0)
            while block := file.read(BLOCK_BYTES):
                yield block
                on_progress(file.tell())

        timeout = httpx.Timeout(UPLOAD_TIMEOUT_S, connect=5)
        return self._with_retries(
            lambda: self._json("POST", "/v1/uploads", content=blocks(), headers=headers, params=params, timeout=timeout)
        )

    def follow_job(self, job_id: str, timeout: float | None = None) -> Iterator[Json]:
        """Yield the job after each change, until it ends. Survives an outage of up to MAX_OUTAGE_S.

        Reads the job's events. Without a stream, after a broken one, and near the time-out it polls.
        Raises Failure after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout if timeout else float("inf")
        etag, pause, down_since, has_stream = "", MIN_POLL_S, None, True
        while True:
            try:
                answer = self._send("GET", api_path("jobs", job_id), headers={"If-None-Match": etag} if etag else {})
                down_since = None
                if answer.status_code != 304:
                    etag, pause = answer.headers.get("ETag", ""), MIN_POLL_S
                    yield (job := answer.json())
                    if job["state"] in TERMINAL:
                        return
                if has_stream and time.monotonic() < deadline - STREAM_TIMEOUT_S:
                    has_stream = False
                    for changed in self._stream_job(job, deadline - STREAM_TIMEOUT_S):
                        has_stream = True
                        yield changed
                        if changed["state"] in TERMINAL:
                            return
            except FarmUnavailable:
                down_since = down_since or time.monotonic()
                if time.monotonic() - down_since > MAX_OUTAGE_S:
                    raise
            if time.monotonic() > deadline:
                raise Failure(sentence("job_timeout", program=program_name(), job=job_id), TIMED_OUT)
            time.sleep(pause)
            pause = min(pause * 1.2, MAX_POLL_S)

    def _stream_job(self, job: Json, until: float) -> Iterator[Json]:
        """Yield the job after each of its events. Returns when the stream breaks or at `until`."""
        path, timeout = api_path("jobs", job["id"], "events"), httpx.Timeout(5, read=STREAM_TIMEOUT_S)
        event: dict[str, str] = {}
        try:
            with self._http.stream("GET", path, timeout=timeout) as answer:
                if answer.status_code != 200 or "text/event-stream" not in answer.headers.get("Content-Type", ""):
                    return
                for line in answer.iter_lines():
                    if line.startswith(":"):  # a ping: the reason why the job waits has no event
                        yield (job := self.get(api_path("jobs", job["id"])))
                    elif line:
                        name, _, event[name] = line.partition(": ")
                    elif "event" in event:
                        yield (job := apply_event(job, event["event"], json.loads(event["data"])))
                        event = {}
                    if time.monotonic() > until:
                        return
        except httpx.TransportError:
            return

    def follow_batch(
        self, batch_id: str, timeout: float | None = None, warn: Callable[[str], None] = lambda text: None
    ) -> Iterator[Json]:
        """Yield the batch every second until it ends; `warn` gets a sentence when an outage begins and ends."""
        late = sentence("batch_timeout", program=program_name(), batch=batch_id)
        return self._poll(api_path("batches", batch_id), ("ended",), timeout, late, warn)

    def follow_dataset(self, dataset_id: str, timeout: float | None = None) -> Iterator[Json]:
        """Yield the dataset every second until it is ready or has failed."""
        late = sentence("dataset_timeout", dataset=dataset_id)
        return self._poll(api_path("datasets", dataset_id), ("ready", "failed"), timeout, late)

    def _poll(
        self,
        path: str,
        final_states: tuple[str, ...],
        timeout: float | None,
        late: str,
        warn: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Json]:
        """Yield the resource every second until its state is final. Survives an outage of up to MAX_OUTAGE_S."""
        deadline, down_since = time.monotonic() + timeout if timeout else float("inf"), None
        while True:
            try:
                found = self.get(path)
                if down_since:
                    warn(sentence("farm_answers_again"))
                down_since = None
                yield found
                if found["state"] in final_states:
                    return
            except FarmUnavailable:
                if not down_since:
                    warn(sentence("farm_outage"))
                down_since = down_since or time.monotonic()
                if time.monotonic() - down_since > MAX_OUTAGE_S:
                    raise
            if time.monotonic() > deadline:
                raise Failure(late, TIMED_OUT)
            time.sleep(MAX_POLL_S)

    def download(self, image: Json) -> bytes:
        """The bytes of a stored image. Raises Failure where their sha256 is not the recorded one."""
        path = api_path("images", image["id"], "content")
        data: bytes = self._with_retries(lambda: self._send("GET", path)).content
        if hashlib.sha256(data).hexdigest() != image["sha256"]:
            raise Failure(sentence("image_damaged", image=image["id"]))
        return data

    def append_from_link(self, link: str, file: BinaryIO, on_progress: Callable[[int], None]) -> None:
        """Append the rest of a presigned link's object to a file; `on_progress` gets the bytes gained, or lost (< 0).

        Raises LinkExpired, or FarmUnavailable where a retry may succeed.
        """
        offset = file.seek(0, SEEK_END)
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._link_client.stream("GET", link, headers=headers) as answer:
                if answer.status_code == 416:  # the file is complete already
                    return
                if answer.status_code in (403, 404):
                    raise LinkExpired(sentence("store_refused_file"))
                if answer.status_code >= 400:
                    raise FarmUnavailable(sentence("store_error", status=answer.status_code))
                if answer.status_code == 200:  # the store ignored the range
                    file.seek(0)
                    file.truncate()
                    on_progress(-offset)
                for block in answer.iter_bytes(BLOCK_BYTES):
                    file.write(block)
                    on_progress(len(block))
        except httpx.TransportError as error:
            raise FarmUnavailable(sentence("store_unreachable", reason=error)) from None

    @cached_property
    def _link_client(self) -> httpx.Client:
        """For presigned links: a request with a second authorization would be refused."""
        return httpx.Client(timeout=httpx.Timeout(60, connect=5), transport=ProxyTransport(), trust_env=False)

    def _with_retries(self, send: Callable[[], Any]) -> Any:
        for delay in RETRY_DELAYS_S:
            try:
                return send()
            except FarmUnavailable:
                time.sleep(delay)
        return send()

    def _json(self, method: str, path: str, **request: Any) -> Any:
        answer = self._send(method, path, **request)
        try:
            return answer.json() if answer.content else None
        except ValueError:
            raise Failure(sentence("not_a_farm", url=self.url)) from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TimeoutException:
            raise FarmUnavailable(sentence("farm_timeout", url=self.url), TIMED_OUT) from None
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            message = sentence("farm_unreachable", url=self.url, reason=error, program=program_name())
            raise FarmUnavailable(message) from None
        if answer.status_code >= 400:
            raise failure_of(answer)
        return answer


def apply_event(job: Json, event: str, data: Json) -> Json:
    """The job after one of its server-sent events."""
    match event:
        case "state" if data["state"] not in TERMINAL:  # a terminal state comes whole, with `end`
            return job | data
        case "progress":
            return job | {"progress": data}
        case "image":
            return job | {"images": [data if image["index"] == data["index"] else image for image in job["images"]]}
        case "end":
            return data
    return job


def api_path(*parts: str) -> str:
    """`/v1/…` with each part quoted: a user may give anything as an id."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
