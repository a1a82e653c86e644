"""One render worker: its parts put together, started and stopped. Knows no Celery.

loop            claims, loads, starts, renders, hands over
inputs          fetches the input images            render_thread   loads models, renders microbatches
uploader        encodes, stores, publishes          heartbeat       renews the leases, reports the worker
notifications   cancellations, changes, progress    watchdog        exits the process when something hangs
quarantine      whether this host is at fault       store_watch     whether it can store
devices         reads how the device does
"""

from contextlib import suppress
from importlib.metadata import version

from common.accounts.farm import Farm
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.config import Settings
from common.db import connect, new_id
from common.errors import Unavailable
from common.log import log_event
from common.queue.workers import Worker
from common.sentences import Sentence
from common.storage import Storage
from worker.availability import Availability
from worker.devices.processes import name_of
from worker.devices.readings import DeviceMonitor
from worker.labels.labeller import Labeller
from worker.models.manager import ModelManager, models_to_serve
from worker.pipelines import registry
from worker.quarantine.quarantine import Quarantine
from worker.quarantine.recovery import Recovery
from worker.quarantine.store_watch import StoreWatch
from worker.render.claimer import Claimer
from worker.render.drain import Drain
from worker.render.heartbeat import Heartbeat
from worker.render.inflight import HeldLeases
from worker.render.input_images import FETCHERS, InputImageLoader
from worker.render.loop import RenderLoop
from worker.render.notifications import Notifications
from worker.render.render_thread import RenderThread
from worker.render.uploader import UPLOADS, Uploader
from worker.watchdog import ON_EXIT_S, Watchdog, limits

MAX_LEASES = 8  # one rendering, one claimed ahead, the others with the uploader


class RenderWorker:
    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        device = registry.describe(settings.device, settings.torch_threads)
        self.id = new_id()
        self.name = name_of(settings.worker_name, settings.device)
        self.worker_class = {**device, "huafang": version("huafang")}
        self.unused_gpu = registry.unused_gpu(settings.device)
        self.devices = DeviceMonitor(registry.device_reader(settings.device), settings.beat_s)
        models = models_to_serve(settings, catalog, str(device["device"]))
        self.model_names = tuple(model.name for model in models)

        self.database = connect(settings, pool=4, keeps_plans=True)
        self.broker = Broker(settings)
        self.held_leases = HeldLeases(MAX_LEASES)
        self.quarantine = Quarantine(self.id, self.name, settings.trial_s, lambda: self.store_watch.try_out())
        self.watchdog = Watchdog(limits(settings, str(device["device"])), self.release_before_exit)
        self.models = ModelManager(
            models, settings, self.worker_class, self.database, self.watchdog, self.name, self.quarantine.begin_by
        )
        postgres, s3 = Availability("database_away", "database_back"), Availability("storage_away", "storage_back")
        storage, own_connection = Storage(settings, connections=UPLOADS + FETCHERS), connect(settings, pool=1)
        self.farm = Farm(self.database, storage, settings.key_pepper.get_secret_value())
        of_trials = Storage(settings, connections=1, attempts=1)
        self.farm.guard(self.database, own_connection, storage, of_trials)
        self.inputs = InputImageLoader(storage, s3, self.watchdog)
        labeller = Labeller(settings)
        self.labelled_class = {**self.worker_class, **labeller.facts}  # not for trial pictures: they have no label
        self.render_thread = RenderThread(self.models, self.watchdog, self.labelled_class, self.quarantine)
        self.notifications = Notifications(settings, self.broker, self.held_leases, lambda: self.render_thread.current)
        self.store_watch = StoreWatch(
            self.id,
            settings,
            self.database,
            of_trials,
            lambda: self.models.resident,
            self.set_aside,
            lambda: self.quarantine.is_active,
        )
        self.uploader = Uploader(
            self.id,
            self.database,
            storage,
            self.notifications.announce_soon,
            self.held_leases,
            postgres,
            s3,
            self.watchdog,
            self.store_watch,
            self.quarantine,
            labeller,
        )
        claimer = Claimer(self.id, self.database, name=self.name, alive_s=3 * settings.beat_s)
        drain = Drain(settings.drain_s, self.quarantine)
        recovery = Recovery(
            self.quarantine, self.models, self.render_thread.try_out, drain.wait_for, self.database, postgres
        )
        self.loop = RenderLoop(
            self.id,
            settings,
            self.database,
            self.models,
            self.inputs,
            self.render_thread,
            self.held_leases,
            self.uploader,
            postgres,
            self.broker.wake,
            self.farm.is_right,
            claimer,
            drain,
            recovery,
        )
        self.heartbeat = Heartbeat(
            settings, own_connection, self.held_leases, postgres, self.describe, self.loop.pause, self.quarantine
        )

    def describe(self) -> tuple[Worker, bool]:
        """What each heartbeat reports: the worker, and whether it is ready."""
        served = [model.name for model in self.models.available()]
        worker = Worker(
            self.id,
            self.name,
            self.labelled_class,
            served,
            self.models.resident,
            self.models.refusals(),
            self.render_thread.seconds_per_image,
            self.models.batch_sizes,
            self.store_watch.cannot_store_s,
            self.devices.latest(),
            self.models.loads,
            self.models.picture_classes(self.labelled_class),
        )
        return worker, self.loop.is_ready and bool(served) and not self.farm.refusal

    def set_aside(self, why: Sentence) -> None:
        """Claim nothing more, and give back what others can store in place of this worker."""
        self.quarantine.begin(why)
        self.uploader.give_back(why)

    def start(self) -> None:
        log_event("worker_started", worker=self.id, name=self.name, models=",".join(self.model_names))
        if self.unused_gpu:
            log_event("gpu_unused", worker=self.id, reason=self.unused_gpu)
        for part in (self.watchdog, self.devices, self.heartbeat, self.notifications, self.store_watch, self.loop):
            part.start()

    def stop(self) -> bool:
        """Drain and stop. False if the render thread was still busy at the deadline."""
        is_idle = self.loop.close()
        self.heartbeat.stop()
        self.notifications.stop()
        self.store_watch.stop()
        self.devices.stop()
        log_event("worker_stopped", worker=self.id)
        return is_idle

    def release_before_exit(self, reason: str) -> None:
        """Before the watchdog exits this process: release what does not render, store what has been rendered."""
        with suppress(Unavailable):
            self.quarantine.sync(self.database)
        self.loop.release_queued()
        self.heartbeat.stop(reason)
        self.uploader.close(ON_EXIT_S / 2)
