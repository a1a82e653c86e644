"""The farm's identity: one id that database, bucket and pepper carry, so that none is taken for another's.

    database   the row of the table `farm`
    bucket     the object `farm-id.json`, which no export and no cleanup touches
    pepper     its HMAC of the id, in both: nobody finds the pepper from it

Each process compares them when it starts, at each new connection to Postgres, and before it uses the image store after
a failure. Who comes first writes what is missing. What cannot be reached is not wrong. Knows no worker and no HTTP.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from psycopg.errors import UndefinedTable
from sqlalchemy import Connection, Engine, Row, event, text

from common.accounts import sentence
from common.db import check_version, new_id, read_version, transaction
from common.errors import Unavailable, WrongFarm
from common.log import log_event
from common.sentences import Sentence
from common.storage import Storage


@dataclass(frozen=True)
class Mark:
    """What the bucket says: whose it is, and the digest of that farm's pepper, if a process with a pepper wrote it."""

    farm: UUID
    pepper: str | None


class Farm:
    """The farm of this process. Safe to share between threads."""

    def __init__(self, database: Engine, storage: Storage, pepper: str, *, needs_pepper: bool = False) -> None:
        """`needs_pepper`: a process that checks keys has to have the pepper that the keys were made with."""
        self.id: UUID | None = None  # None: not compared yet
        self.refusal: Sentence | None = None  # what was wrong when it was last compared
        self._database = database
        self._storage = storage
        self._pepper = pepper
        self._needs_pepper = needs_pepper

    def guard(self, *services: Engine | Storage) -> None:
        """Compare each new connection of an engine, and a store before its use after a failure.

        Then what uses them raises WrongFarm in place of touching another farm's rows or objects.
        """
        for service in services:
            if isinstance(service, Storage):
                service.verify_by(partial(self._compare_bucket, service))
            else:
                event.listen(service, "connect", self._compare_connection)

    def ensure(self) -> None:
        """Compare all three, unless they were right when they were last compared. Logs what is wrong; see `compare`."""
        before = self.refusal
        if self.id and not before:
            return
        try:
            self.compare()
        except WrongFarm as error:
            self._log(error.message, before)
            raise

    def is_right(self) -> bool:
        """`ensure`, as a question: False also while that is unknown, because a service cannot be reached."""
        try:
            self.ensure()
        except Unavailable:
            return False
        return True

    def compare(self) -> UUID:
        """Compare all three, and write what no process has written yet; the farm's id.

        Raises WrongFarm if one is another farm's, and Unavailable while one cannot be reached.
        """
        with transaction(self._database) as connection:
            check_version(read_version(connection))
            row = read_row(connection)
        self._judge(row, self._read_mark(row))
        if not row.bucket_marked_at or (self._pepper and not row.pepper_digest):
            self._complete()
        self.id, self.refusal = row.id, None
        return self.id

    def adopt_bucket(self) -> UUID:
        """Make the bucket that of the database's farm, whosever it was; the farm's id."""
        with transaction(self._database) as connection:
            row = read_row(connection)
            self._storage.write_mark(document(row.id, row.pepper_digest), replace=True)
            connection.execute(BUCKET_IS_MARKED)
        return UUID(str(row.id))

    def adopt_pepper(self) -> UUID:
        """Make the pepper that of the database's farm: keys and sessions of the former one are void. The farm's id."""
        with transaction(self._database) as connection:
            row = read_row(connection)
            of_farm = digest(self._pepper, row.id)
            connection.execute(REPLACE_PEPPER, {"digest": of_farm})
            mark = read_mark(self._storage)
            if mark and mark.farm == row.id:
                self._storage.write_mark(document(row.id, of_farm), replace=True)
        return UUID(str(row.id))

    def _read_mark(self, row: Row[Any]) -> Mark | None:
        """Whose the bucket is. While the store is away, the pepper and the database are compared all the same."""
        try:
            return read_mark(self._storage)
        except WrongFarm:
            raise
        except Unavailable:
            if why := self._pepper_mismatch(row, None):
                raise self._refused(why) from None
            raise

    def _judge(self, row: Row[Any], mark: Mark | None) -> None:
        if why := self._mismatch(row, mark):
            raise self._refused(why)

    def _mismatch(self, row: Row[Any], mark: Mark | None) -> Sentence | None:
        """Which of the three is another farm's: the one that the two others do not know."""
        if self.id not in (None, row.id):
            return sentence("database_was_replaced", farm=self.id)
        if mark is not None and mark.farm != row.id:
            knows_row, knows_mark = self._knows(row.id, row.pepper_digest), self._knows(mark.farm, mark.pepper)
            bucket = self._storage.bucket
            if knows_row == knows_mark:
                return sentence("bucket_and_database_differ", farm=row.id, bucket=bucket, other=mark.farm)
            if knows_row:
                return self._bucket_of_another(row.id, mark)
            return sentence("database_of_another_farm", farm=row.id, bucket=bucket, other=mark.farm)
        if why := self._pepper_mismatch(row, mark):
            return why
        return self._bucket_without_mark() if mark is None and row.bucket_marked_at else None

    def _pepper_mismatch(self, row: Row[Any], mark: Mark | None) -> Sentence | None:
        """What is wrong with the pepper, if database and bucket are of one farm."""
        digests = [found for found in (row.pepper_digest, mark.pepper if mark else None) if found]
        if digests and not self._pepper:
            return sentence("pepper_missing") if self._needs_pepper else None
        return None if all(self._knows(row.id, found) for found in digests) else sentence("pepper_of_another_farm")

    def _knows(self, farm: UUID, found: str | None) -> bool:
        return bool(self._pepper) and found == digest(self._pepper, farm)

    def _complete(self) -> None:
        """Write what is missing. The row is locked: of two processes with two buckets only one marks its own."""
        with transaction(self._database) as connection:
            row, mark = connection.execute(LOCK).one(), read_mark(self._storage)
            self._judge(row, mark)
            of_farm = digest(self._pepper, row.id) if self._pepper else row.pepper_digest
            if mark is None:
                self._storage.write_mark(document(row.id, of_farm), replace=False)
                self._judge(row, read_mark(self._storage))
            connection.execute(COMPLETE, {"digest": of_farm})

    def _compare_connection(self, connection: Any, record: object) -> None:
        """Close a new connection of psycopg to another farm's database."""
        if self.id is None:
            return
        try:
            found = connection.execute(READ_ID).fetchone()
            connection.rollback()
        except UndefinedTable:
            found = None
        if found is None or found[0] != self.id:
            connection.close()
            raise self._noticed(sentence("database_was_replaced", farm=self.id))

    def _compare_bucket(self, storage: Storage) -> None:
        if self.id is None:
            self.ensure()
            return
        mark = read_mark(storage)
        if mark is None:
            raise self._noticed(self._bucket_without_mark())
        if mark.farm != self.id:
            raise self._noticed(self._bucket_of_another(self.id, mark))

    def _bucket_without_mark(self) -> Sentence:
        return sentence("bucket_without_mark", bucket=self._storage.bucket)

    def _bucket_of_another(self, farm: UUID, mark: Mark) -> Sentence:
        return sentence("bucket_of_another_farm", bucket=self._storage.bucket, farm=farm, other=mark.farm)

    def _noticed(self, why: Sentence) -> WrongFarm:
        self._log(why, self.refusal)
        return self._refused(why)

    def _refused(self, why: Sentence) -> WrongFarm:
        self.refusal = why
        return WrongFarm(why)

    def _log(self, why: Sentence, before: Sentence | None) -> None:
        if why != before:
            log_event("wrong_farm", reason=why)


def document(farm: UUID, of_farm: str | None) -> bytes:
    """What the bucket's object says."""
    return json.dumps({"farm": str(farm), "pepper": of_farm}).encode()


def digest(pepper: str, farm: UUID) -> str:
    return hmac.digest(pepper.encode(), f"farm {farm}".encode(), hashlib.sha256).hex()


def read_row(connection: Connection) -> Row[Any]:
    """The row of the farm, made if there is none."""
    connection.execute(INSERT, {"id": new_id()})
    return connection.execute(READ).one()


def read_mark(storage: Storage) -> Mark | None:
    """Whose the bucket is; None if nobody has said so. Raises Unavailable if what is there cannot be read."""
    written = storage.read_mark()
    if written is None:
        return None
    try:
        found = json.loads(written)
        return Mark(UUID(found["farm"]), found["pepper"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongFarm(sentence("mark_unreadable", bucket=storage.bucket)) from error


# Insert the row of the farm, unless another process was faster.
INSERT = text("INSERT INTO farm (id) VALUES (:id) ON CONFLICT DO NOTHING")

# Read the row of the farm.
READ = text("SELECT id, pepper_digest, bucket_marked_at FROM farm")

# Read the id of the farm, past SQLAlchemy.
READ_ID = "SELECT id FROM farm"

# Lock the row of the farm.
LOCK = text("SELECT id, pepper_digest, bucket_marked_at FROM farm FOR UPDATE")

# Record the digest of the pepper, and that the bucket carries the farm's id.
COMPLETE = text("""
    UPDATE farm SET pepper_digest = coalesce(pepper_digest, :digest),
        bucket_marked_at = coalesce(bucket_marked_at, now())
""")

# Replace the digest of the pepper.
REPLACE_PEPPER = text("UPDATE farm SET pepper_digest = :digest")

# Record that the bucket carries the farm's id.
BUCKET_IS_MARKED = text("UPDATE farm SET bucket_marked_at = now() WHERE bucket_marked_at IS NULL")
