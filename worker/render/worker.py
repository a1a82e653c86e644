"""One render worker: its parts put together, started and stopped.

    engine     claims, begins, hands over            store   encodes, uploads, publishes
    brush      loads and paints                      news    hears of cancellations, tells who watches
    heartbeat  renews the leases, hears of drains        watchdog  ends the process when something hangs
    grounds    fetches the pictures to paint over

Knows no Celery.
"""

import socket
from importlib.metadata import version

from common.broker import Broker
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import connect, new_id
from common.log import log_event
from common.queue.workers import Worker
from common.storage import Storage
from worker.availability import Availability
from worker.models.manager import ModelManager, models_to_serve
from worker.pipelines import registry
from worker.render.heartbeat import Heartbeat
from worker.render.inflight import HeldLeases
from worker.render.input_images import FETCHERS, InputImageLoader
from worker.render.loop import RenderLoop
from worker.render.notifications import Notifications
from worker.render.render_thread import RenderThread
from worker.render.uploader import UPLOADS, Uploader
from worker.watchdog import FAREWELL_S, Watchdog, limits

MICROBATCHES = 8  # that one process holds: one painted, one claimed ahead, the others on their way to the store


class RenderWorker:
    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        about = registry.describe(settings.device, settings.torch_threads)
        self.id = new_id()
        self.name = settings.worker_name or f"{socket.gethostname()}-{settings.device}"
        self.worker_class = {**about, "huafang": version("huafang")}
        models = models_to_serve(settings, catalog, str(about["device"]))
        self.models = tuple(model.name for model in models)

        self.database = connect(settings, pool=4)
        self.messages = Broker(settings)
        self.holdings = HeldLeases(MICROBATCHES)
        self.watchdog = Watchdog(limits(settings, str(about["device"])), self.say_farewell)
        self.gallery = ModelManager(models, settings, self.worker_class, self.database, self.watchdog)
        postgres, s3 = Availability("database_away", "database_back"), Availability("storage_away", "storage_back")
        storage = Storage(settings, connections=UPLOADS + FETCHERS)
        self.grounds = InputImageLoader(storage, s3, self.watchdog)
        self.brush = RenderThread(self.gallery, self.watchdog, self.worker_class)
        self.news = Notifications(settings, self.messages, self.holdings, lambda: self.brush.rendering)
        self.store = Uploader(
            self.id, self.database, storage, self.news.changed, self.holdings, postgres, s3, self.watchdog
        )
        self.engine = RenderLoop(
            self.id,
            settings,
            self.database,
            self.gallery,
            self.grounds,
            self.brush,
            self.holdings,
            self.store,
            postgres,
            self.messages.wake,
        )
        own_connection = connect(settings, pool=1)
        self.heartbeat = Heartbeat(settings, own_connection, self.holdings, postgres, self.introduce, self.engine.pause)

    def introduce(self) -> tuple[Worker, bool]:
        """What this worker says of itself at each beat, and whether it is ready."""
        serves = [model.name for model in self.gallery.available()]
        about = Worker(
            self.id,
            self.name,
            self.worker_class,
            serves,
            self.gallery.resident,
            self.gallery.refusals(),
            self.brush.seconds_per_image,
            self.gallery.batch_sizes,
        )
        return about, self.engine.is_ready and bool(serves)

    def start(self) -> None:
        log_event("worker_started", worker=self.id, name=self.name, models=",".join(self.models))
        for part in (self.watchdog, self.heartbeat, self.news, self.engine):
            part.start()

    def stop(self) -> bool:
        """Drain and say goodbye; False if the painter was still busy when the time was up."""
        painted = self.engine.close()
        self.heartbeat.stop()
        self.news.stop()
        log_event("worker_stopped", worker=self.id)
        return painted

    def say_farewell(self, reason: str) -> None:
        """Before this process ends itself: give back what has not started, store what is painted."""
        self.engine.end()
        self.heartbeat.stop(reason)
        self.store.close(FAREWELL_S / 2)
