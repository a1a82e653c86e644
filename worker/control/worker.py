"""One control worker: its parts put together, started and stopped. Knows no Celery.

sweep      repairs, every few seconds, in a thread of its own
expander   checks, expands and settles batches
exporter   writes datasets
"""

import threading

from common.accounts.farm import Farm
from common.accounts.limits import Limits
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import connect
from common.log import log_event
from common.policy.policy import load
from common.storage import Storage
from worker.control.batch_expander import Expander
from worker.control.sweep import Sweep
from worker.datasets.exporter import Exporter

EXPORT_CONNECTIONS = 12  # to the image store: images that are read, and parts of a shard that are written


class ControlWorker:
    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.database = connect(settings, pool=5)
        self.broker = Broker(settings)
        storage, of_exports = Storage(settings, attempts=1), Storage(settings, connections=EXPORT_CONNECTIONS)
        self.farm = Farm(self.database, storage, settings.key_pepper.get_secret_value())
        self.farm.guard(self.database, storage, of_exports)
        self.sweep = Sweep(settings, self.database, self.broker, storage)
        self.policy = load(settings.policy)
        self.expander = Expander(
            self.database, storage, self.broker, catalog, self.policy, limits=Limits.in_settings(settings)
        )
        self.exporter = Exporter(self.database, of_exports, catalog)
        self._sweeps = settings.sweep
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.sweep.run, args=(self._stopping,), name="sweep", daemon=True)

    def start(self) -> None:
        if self._sweeps:
            self._thread.start()
        log_event("control_started", sweeps=self._sweeps, policy=self.policy.version or None)

    def leave(self) -> None:
        """Let the tasks in progress return soon."""
        self.expander.leave()
        self.exporter.leave()

    def stop(self) -> None:
        self._stopping.set()
        if self._sweeps:
            self._thread.join(10)
