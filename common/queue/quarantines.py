"""Quarantines: workers that claim nothing because their host is at fault, by name. Also the known trial pictures.

    quarantine ──► take_trial, again and again ──► lift      (its trial pictures are good)
         └──────────────────┴────────────────────► resume    (an operator says so)

A quarantine belongs to the name of a worker, so it outlives the process. A trial is counted when it begins: one that
ends its process counts too. `known_picture` and `record_picture` keep what each class of workers renders as the trial
picture of a model. Nothing here renders.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from common.errors import NotFound
from common.queue import sentence
from common.sentences import Sentence

RESTS = (1, 5, 15)  # before the first, the second and each further trial, in rests of a worker: minutes by default


@dataclass(frozen=True)
class Quarantine:
    """Why and since when the workers of a name claim nothing; `due_in_s`: until the next trial, negative if overdue.

    `model` is to be rendered in the trial; None: any. `code` is that of the sentence in `reason`.
    """

    name: str
    quarantined_at: datetime
    code: str
    reason: str
    model: str | None
    trials: int
    retry_at: datetime
    due_in_s: float


def quarantine(
    connection: Connection,
    name: str,
    why: Sentence,
    *,
    model: str | None = None,
    known_picture: str | None = None,
    rest_s: float = 60,
) -> bool:
    """Quarantine the workers of this name; the first trial is due in `rest_s` seconds. False if they are already.

    `known_picture`: the digest of the trial picture that theirs differs from.
    """
    parameters = {
        "name": name,
        "code": why.code,
        "reason": why,
        "model": model,
        "known_picture": known_picture,
        "seconds": RESTS[0] * rest_s,
    }
    return connection.execute(QUARANTINE, parameters).rowcount > 0


def of(connection: Connection, name: str) -> Quarantine | None:
    """None: the workers of this name are not quarantined."""
    row = connection.execute(READ, {"name": name}).first()
    return Quarantine(**row._mapping) if row else None


def take_trial(connection: Connection, name: str, rest_s: float = 60) -> bool:
    """Whether a trial is due; then it counts, and the next one is due in 5 or 15 times `rest_s` seconds.

    One of two processes of a name gets it.
    """
    rests = [rest * rest_s for rest in RESTS[1:]]
    return connection.execute(TAKE_TRIAL, {"name": name, "rests": rests}).rowcount > 0


def lift(connection: Connection, name: str) -> bool:
    """End a quarantine because the trial was good. False if there was none."""
    return connection.execute(LIFT, {"name": name}).rowcount > 0


def resume(connection: Connection, name: str) -> None:
    """End a quarantine because an operator says so. Raises NotFound if there is none.

    The trial picture that theirs differed from is forgotten: their next one becomes the known one.
    """
    if connection.execute(RESUME, {"name": name}).first() is None:
        raise NotFound(sentence("not_quarantined", worker=name))


def stored_by_others(connection: Connection, worker_id: UUID, image_ids: Iterable[UUID]) -> frozenset[UUID]:
    """Which of these images other workers than this one have stored."""
    parameters = {"worker": worker_id, "ids": list(image_ids)}
    return frozenset(connection.execute(STORED_BY_OTHERS, parameters).scalars())


def known_picture(connection: Connection, digest: str) -> bytes | None:
    """The thumbnail of the known trial picture; None: nobody has recorded one."""
    return connection.execute(KNOWN_PICTURE, {"digest": digest}).scalar()


def record_picture(connection: Connection, digest: str, model: str, name: str, thumbnail: bytes) -> bytes:
    """Record the thumbnail of a trial picture, unless another worker was faster; the known one."""
    parameters = {"digest": digest, "model": model, "name": name, "thumbnail": thumbnail}
    connection.execute(RECORD_PICTURE, parameters)
    return bytes(connection.execute(KNOWN_PICTURE, parameters).scalar_one())


# Quarantines a name, unless it is.
QUARANTINE = text("""
    INSERT INTO quarantines (name, code, reason, model, known_picture, retry_at)
    VALUES (:name, :code, :reason, :model, :known_picture, now() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO NOTHING
""")

# Reads a quarantine.
READ = text("""
    SELECT name, quarantined_at, code, reason, model, trials, retry_at,
           extract(epoch FROM retry_at - clock_timestamp())::float AS due_in_s
    FROM quarantines WHERE name = :name
""")

# Counts a trial that is due. The last rest is that of all further trials.
TAKE_TRIAL = text("""
    UPDATE quarantines SET trials = trials + 1,
        retry_at = now() + make_interval(
            secs => (cast(:rests AS float[]))[least(trials + 1, cardinality(cast(:rests AS float[])))])
    WHERE name = :name AND retry_at <= now()
""")

# Ends a quarantine.
LIFT = text("DELETE FROM quarantines WHERE name = :name")

# Ends a quarantine, and forgets the trial picture that was its reason.
RESUME = text("""
    WITH resumed AS (DELETE FROM quarantines WHERE name = :name RETURNING name, known_picture),
    forgotten AS (DELETE FROM trial_pictures WHERE digest IN (SELECT known_picture FROM resumed))
    SELECT name FROM resumed
""")

# Finds those of these images that other workers have stored.
STORED_BY_OTHERS = text("""
    SELECT images.id FROM images JOIN leases ON leases.id = images.lease_id
    WHERE images.id = ANY(:ids) AND images.state = 'stored' AND leases.worker_id <> :worker
""")

# Reads the known trial picture.
KNOWN_PICTURE = text("SELECT thumbnail FROM trial_pictures WHERE digest = :digest")

# Inserts a trial picture, unless there is one.
RECORD_PICTURE = text("""
    INSERT INTO trial_pictures (digest, model, recorded_by, thumbnail) VALUES (:digest, :model, :name, :thumbnail)
    ON CONFLICT DO NOTHING
""")
