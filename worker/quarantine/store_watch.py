"""Whether this worker can store images; if it cannot while others can, it gives back what it holds and is quarantined.

    note_stored, note_failed   by the uploader, after each try
    look                       every few seconds: has it failed for too long, and can others store?
    try_out                    stores and deletes a small object: the trial that ends such a quarantine

While nobody can store, everybody keeps what it has rendered until the store is back. An idle worker does not know
whether it can: it tries as soon as another one says that it cannot. Knows no pipeline. Safe to share between threads.
"""

import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import transaction
from common.errors import Unavailable
from common.failures import new_reference
from common.log import log_event
from common.queue import workers
from common.sentences import Sentence
from common.storage import TRIAL, Storage
from worker.quarantine import sentence

PROOF = 1 / 3  # of the time limit: whoever has stored something since then can store
SILENT_BEATS = 3  # a worker that has reported nothing for so long is not counted on
TRIAL_BYTES = bytes(1_000)


class StoreWatch:
    def __init__(
        self,
        worker_id: UUID,
        settings: Settings,
        database: Database,
        storage: Storage,
        models: Callable[[], Sequence[str]],
        set_aside: Callable[[Sentence], None],
        is_set_aside: Callable[[], bool],
    ) -> None:
        """`storage` is for trials only; `models` gives those that another worker has to serve in place of this one."""
        self._worker_id = worker_id
        self._limit_s, self._beat_s = settings.cannot_store_s, settings.beat_s
        self._database = database
        self._storage = storage
        self._models = models
        self._set_aside = set_aside
        self._is_set_aside = is_set_aside
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._reason = ""
        self._stored_at = time.monotonic()
        self._gives_back = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)

    @property
    def cannot_store_s(self) -> float | None:
        """For how many seconds every try has failed; None if the last one did not."""
        with self._lock:
            return None if self._failing_since is None else time.monotonic() - self._failing_since

    @property
    def gives_back(self) -> bool:
        """Whether nothing more is to be stored here: others can, and have to."""
        return self._gives_back and self._is_set_aside()

    def note_stored(self) -> None:
        with self._lock:
            self._failing_since, self._stored_at, self._gives_back = None, time.monotonic(), False

    def note_failed(self, began: float, reason: str) -> bool:
        """A try that began then, by the monotonic clock, has failed. Whether it is the first one."""
        with self._lock:
            is_first = self._failing_since is None
            if is_first:
                self._failing_since = began
            self._reason = reason
            return is_first

    def try_out(self) -> bool:
        """Store a small object and delete it again; whether that went well."""
        began = time.monotonic()
        try:
            self._storage.put(TRIAL, TRIAL_BYTES, "application/octet-stream")
            self._storage.delete([TRIAL])
        except Unavailable as error:
            self.note_failed(began, error.message)
            return False
        except Exception as error:
            log_event("store_failed", exc_info=True, worker=self._worker_id, key=TRIAL)
            self.note_failed(began, repr(error))
            return False
        self.note_stored()
        return True

    def look(self) -> None:
        """Try, if others say that they cannot store; give back, if this worker alone cannot. Raises Unavailable."""
        with transaction(self._database) as connection:
            storing = workers.storing(connection, self._worker_id, self._models(), SILENT_BEATS * self._beat_s)
        if self._gives_back and not self._is_set_aside():  # an operator says that it can
            self.note_stored()
        failing_s = self.cannot_store_s
        if failing_s is None and storing.others_cannot and time.monotonic() - self._stored_at > PROOF * self._limit_s:
            self.try_out()
        elif failing_s is not None and failing_s >= self._limit_s and storing.others_can and not self._gives_back:
            self._gives_back = True
            self._set_aside(sentence("cannot_store", seconds=round(failing_s), reason=self._reason))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(self._beat_s):
            try:
                self.look()
            except Unavailable:
                pass
            except Exception:
                log_event("store_watch_failed", exc_info=True, worker=self._worker_id, reference=new_reference())
