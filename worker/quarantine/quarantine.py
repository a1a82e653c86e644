"""Whether this worker is quarantined: its host is at fault, so it claims nothing until its trial pictures are good.

    begin   ──► sync        at once in memory, then in Postgres: by the loop, the heartbeat, or before the exit
    sync    ──► is_active   what Postgres says of the worker's name: a new process begins with it, an operator ends it

It begins by what the render thread finds out about itself, or when others have stored what failed here: `judge`. It
ends when `Recovery` has rendered good trial pictures. Knows no pipeline. Safe to share between threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Engine as Database

from common.db import transaction
from common.log import log_event
from common.queue import quarantines
from common.sentences import Sentence
from worker.models.trial import Fault
from worker.quarantine import sentence

CANNOT_STORE = "cannot_store"  # the code of the reason of `store_watch`
CALLS = 20  # so many of the last pipeline calls are remembered;
FAILED_CALLS = 3  # and so many of them that failed at what others stored are the host's fault


@dataclass(frozen=True)
class Begun:
    """A quarantine that Postgres does not know of yet."""

    why: Sentence
    model: str | None
    known_picture: str | None


class Quarantine:
    def __init__(
        self, worker_id: UUID, name: str, trial_s: float, can_store: Callable[[], bool] = lambda: True
    ) -> None:
        """`trial_s`: seconds until the first trial. They are five times as many then, and fifteen times.

        `can_store` stores a small object: the trial of a worker that could not.
        """
        self.can_store = can_store
        self._worker_id = worker_id
        self.name = name
        self._trial_s = trial_s
        self._begun: Begun | None = None
        self._known: quarantines.Quarantine | None = None
        self.is_known = False  # whether Postgres was asked
        self._failed: deque[frozenset[UUID]] = deque(maxlen=CALLS)  # of each call: the images at which it failed
        self._syncing = threading.Lock()  # of two answers of Postgres the later one must win

    @property
    def is_active(self) -> bool:
        return self._begun is not None or self._known is not None

    @property
    def model(self) -> str | None:
        """The one that the trial renders; None: any."""
        return self._known.model if self._known else None

    @property
    def code(self) -> str | None:
        """Of the reason."""
        return self._known.code if self._known else None

    def begin(self, why: Sentence, model: str | None = None, known_picture: str | None = None) -> None:
        """Claim nothing from now on. Never blocks; see `quarantines.quarantine`."""
        if self._begun or self._known:
            return
        self._begun = Begun(why, model, known_picture)
        self._failed.clear()
        log_event("worker_quarantined", worker=self._worker_id, name=self.name, model=model, reason=why)

    def begin_by(self, fault: Fault) -> None:
        self.begin(fault.why, fault.model, fault.known_picture)

    def sync(self, database: Database) -> None:
        """Write to Postgres what has begun, and read what is. Raises Unavailable."""
        with self._syncing:
            begun, failed = self._begun, self._failed_images()
            with transaction(database) as connection:
                if begun:
                    quarantines.quarantine(
                        connection,
                        self.name,
                        begun.why,
                        model=begun.model,
                        known_picture=begun.known_picture,
                        rest_s=self._trial_s,
                    )
                known = quarantines.of(connection, self.name)
                stored = quarantines.stored_by_others(connection, self._worker_id, failed) if failed else frozenset()
            if self._known and not known:
                log_event("worker_resumed", worker=self._worker_id, name=self.name)
            self._known, self.is_known = known, True
            if self._begun is begun:
                self._begun = None
        self.judge(stored)

    def take_trial(self, database: Database) -> bool:
        """Whether a trial is due. It counts from now on, so that one that ends this process counts too."""
        with self._syncing, transaction(database) as connection:
            return quarantines.take_trial(connection, self.name, self._trial_s)

    def lift(self, database: Database) -> None:
        """The trial was good."""
        with self._syncing:
            with transaction(database) as connection:
                quarantines.lift(connection, self.name)
            self._known = self._begun = None
            self._failed.clear()
        log_event("worker_recovered", worker=self._worker_id, name=self.name)

    def note_call(self, failed: Iterable[UUID]) -> None:
        """Remember a pipeline call: the images of one that failed for an unforeseen reason, none of one that did not.

        What others store of them failed at this host.
        """
        self._failed.append(frozenset(failed))

    def judge(self, stored_by_others: Collection[UUID]) -> None:
        """Begin if too many of the last calls failed at what others could store."""
        failed = sum(not call.isdisjoint(stored_by_others) for call in list(self._failed))
        if failed >= FAILED_CALLS:
            self.begin(sentence("fails_what_others_store", failed=failed, calls=CALLS))

    def _failed_images(self) -> frozenset[UUID]:
        return frozenset().union(*list(self._failed))
