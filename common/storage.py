"""The image store: puts and gets bytes, makes links, and lays out keys. Speaks S3; knows no job and no state."""

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, TypeVar
from uuid import UUID

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from common import sentence
from common.config import Settings
from common.errors import Error, NoRoom, NotFound, Unavailable

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
BLOCK_BYTES = 1_000_000
IN_PARTS = TransferConfig(multipart_chunksize=8_000_000, max_concurrency=2)
IN_PARTS.max_in_memory_upload_chunks = 2  # 10 by default, and boto3 has no argument for it
LISTED = 1000  # objects that a store lists at once
LINK_S = 900  # how long a presigned link is good for
MARK = "farm-id.json"  # says whose the bucket is
TRIAL = "images/trial"  # what a worker stores and deletes to find out whether it can
EXISTS = (409, 412)  # what a store answers to a conditional request
VERIFIED_S = 10  # for so long a store that answers is taken for the same one

T = TypeVar("T")


def image_key(job_id: UUID, index: int, lease_id: UUID, image_format: str) -> str:
    """The key of an image. It contains the lease, so no worker can overwrite another's bytes."""
    return f"images/{job_id}/{index}-{lease_id}.{image_format}"


def owner_of_image(key: str) -> tuple[UUID, int] | None:
    """The job and the index in the key of an image; None for any other key."""
    folder, _, rest = key.partition("/")
    job_id, _, name = rest.partition("/")
    index = name.partition("-")[0]
    if folder != "images" or not re.fullmatch("[0-9]{1,5}", index):
        return None
    try:
        return UUID(job_id), int(index)
    except ValueError:
        return None


def upload_key(upload_id: UUID, upload_format: str) -> str:
    """The key of an uploaded file."""
    return f"uploads/{upload_id}.{upload_format}"


def dataset_key(dataset_id: UUID, path: str) -> str:
    """The key of a file of a dataset."""
    return f"datasets/{dataset_id}/{path}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class StoredObject:
    """What a listing says of an object."""

    key: str
    bytes: int
    stored_at: datetime


class EndOfFile(Error):
    """The offset is at or behind the end."""


class Blocks(io.RawIOBase):
    """A file of blocks of any size, to be read once."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (block := next(self._blocks, None)) is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class Storage:
    """One bucket of an S3-compatible store. Safe to share between threads.

    Every method raises Unavailable while the store is down, answers with a server error, or refuses the credentials;
    NoRoom while it is full.
    """

    def __init__(self, settings: Settings, *, connections: int = 10, attempts: int = 2) -> None:
        self.bucket = settings.s3_bucket
        self._client = _client(settings, settings.s3_endpoint_url, connections, attempts)
        public_url = settings.s3_public_url or settings.s3_endpoint_url
        self._signer = _client(settings, public_url, 1, attempts)
        self._verify: Callable[[], None] | None = None
        self._verified_until = 0.0

    def verify_by(self, verify: Callable[[], None]) -> None:
        """Call this before the first request, after one that failed, and every ten seconds: what it raises is raised.

        So nothing goes to a store that took the place of the right one while that was away.
        """
        self._verify = verify

    def verify(self) -> None:
        """Verify the store now if that is due. Raises what `verify_by` was given raises."""
        if self._verify and time.monotonic() > self._verified_until:
            self._verify()
            self._verified_until = time.monotonic() + VERIFIED_S

    def read_mark(self) -> bytes | None:
        """What says whose the bucket is; None if nothing does. Not verified before."""
        try:
            return bytes(self._send(lambda: self._client.get_object(Bucket=self.bucket, Key=MARK)["Body"].read()))
        except NotFound:
            return None

    def write_mark(self, data: bytes, *, replace: bool) -> None:
        """Say whose the bucket is. Without `replace` a mark that is there stays where the store can see to it."""
        put = partial(self._client.put_object, Bucket=self.bucket, Key=MARK, Body=data, ContentType="application/json")
        if not replace:
            try:
                put(IfNoneMatch="*")
                return
            except (ClientError, BotoCoreError) as error:
                if _status(error) in EXISTS:
                    return
        self._send(put)

    def put(self, key: str, data: bytes, media_type: str) -> None:
        self._do(lambda: self._client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=media_type))

    def get(self, key: str) -> bytes:
        """The bytes under a key. Raises NotFound when there are none."""
        return bytes(self._do(lambda: self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()))

    def read(self, key: str, offset: int, size: int) -> bytes:
        """`size` of the bytes under a key. Raises NotFound when there are none."""
        wanted = f"bytes={offset}-{offset + size - 1}"
        return bytes(
            self._do(lambda: self._client.get_object(Bucket=self.bucket, Key=key, Range=wanted)["Body"].read())
        )

    def put_file(self, key: str, file: BinaryIO, media_type: str) -> None:
        """Store a file of any size from its current position on, in parts, so that memory stays small."""
        extra = {"ContentType": media_type}
        self._do(lambda: self._client.upload_fileobj(file, self.bucket, key, ExtraArgs=extra, Config=IN_PARTS))

    def put_blocks(self, key: str, blocks: Iterator[bytes], media_type: str) -> None:
        """Store blocks of any size in parts, as they arrive. Raises what the iterator raises."""
        self.put_file(key, io.BufferedReader(Blocks(blocks)), media_type)

    @contextmanager
    def open(self, key: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """The bytes under a key from an offset on, in blocks of 1 MB. Raises NotFound when there are none."""
        try:
            body = self._do(
                lambda: self._client.get_object(Bucket=self.bucket, Key=key, Range=f"bytes={offset}-")["Body"]
            )
        except EndOfFile:
            yield iter(())
            return
        with closing(body):
            yield iter(lambda: bytes(self._do(lambda: body.read(BLOCK_BYTES))), b"")

    def list_objects(self, prefix: str, after: str = "", limit: int = LISTED) -> list[StoredObject]:
        """At most `limit` (LISTED) objects whose keys begin so and come after that key, in the order of their keys."""
        given = {"Bucket": self.bucket, "Prefix": prefix, "StartAfter": after, "MaxKeys": limit}
        answer = self._do(lambda: self._client.list_objects_v2(**given))
        return [StoredObject(o["Key"], o["Size"], o["LastModified"]) for o in answer.get("Contents", ())]

    def exists(self, key: str) -> bool:
        try:
            self._do(lambda: self._client.head_object(Bucket=self.bucket, Key=key))
        except NotFound:
            return False
        return True

    def digest(self, key: str) -> str:
        """The sha256 of the bytes under a key, in hex. Raises NotFound when there are none."""
        found = hashlib.sha256()
        with self.open(key) as blocks:
            for block in blocks:
                found.update(block)
        return found.hexdigest()

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the bytes under these keys. A key without bytes is no error."""
        for key in keys:
            self._do(partial(self._client.delete_object, Bucket=self.bucket, Key=key))

    def delete_many(self, keys: Sequence[str]) -> list[str]:
        """Delete the bytes under at most 1,000 keys in one request; those that the store refused to delete."""
        if not keys:
            return []
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self._do(partial(self._client.delete_objects, Bucket=self.bucket, Delete=wanted))
        return [error["Key"] for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]

    def link(self, key: str, *, seconds: int = LINK_S, save_as: str | None = None) -> str:
        """A presigned link to the bytes under a key. With `save_as` (ASCII) a browser saves them under that name.

        Sends no request: the key need not exist.
        """
        named = {"ResponseContentDisposition": f'attachment; filename="{save_as}"'} if save_as else {}
        return str(
            self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self.bucket, "Key": key, **named}, ExpiresIn=seconds
            )
        )

    def check(self) -> None:
        """Raise Unavailable or NotFound unless these credentials reach the bucket. Not verified before."""
        try:
            self._send(lambda: self._client.head_bucket(Bucket=self.bucket))
        except Error:
            self._verified_until = 0.0
            raise

    def ensure_bucket(self) -> None:
        """Make the bucket if it is not there."""
        try:
            self.check()
        except NotFound:
            self._send(lambda: self._client.create_bucket(Bucket=self.bucket))

    def _do(self, call: Callable[[], T]) -> T:
        self.verify()
        try:
            return self._send(call)
        except Unavailable:
            self._verified_until = 0.0
            raise

    def _send(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ClientError as error:
            status = _status(error)
            if error.response.get("Error", {}).get("Code") == "NoSuchBucket":
                raise Unavailable(sentence("bucket_missing", bucket=self.bucket)) from error
            if status == 404:
                raise NotFound(sentence("key_missing")) from error
            if status == 416:
                raise EndOfFile(sentence("range_behind_end")) from error
            if error.response.get("Error", {}).get("Code") == "RequestTimeTooSkewed":
                raise Unavailable(sentence("storage_clock")) from error
            if status == 403:
                raise Unavailable(sentence("storage_credentials")) from error
            if status == NoRoom.status:
                raise NoRoom(sentence("storage_full")) from error
            raise Unavailable(sentence("storage_error", status=status)) from error
        except (BotoCoreError, HTTPError, S3UploadFailedError, OSError) as error:
            raise Unavailable(sentence("storage_down")) from error


def _status(error: Exception) -> int:
    """The status of the store's answer; 0 where it gave none."""
    return int(getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _client(settings: Settings, endpoint: str | None, connections: int, attempts: int) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"} if endpoint else {},
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=3,
            read_timeout=20,
            max_pool_connections=connections,
            tcp_keepalive=True,
        ),
    )
