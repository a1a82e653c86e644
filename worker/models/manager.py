"""The models of a render worker: which are in memory, their batch sizes, and which it refuses.

Keeps as many pipelines as fit into model memory and evicts the least recently used. Components that models share are in
memory once and counted once. A hub model is loaded at the revision that the farm's first worker recorded, so that all
use the same weights; batch sizes are those that the first worker of this class found. A model renders its trial picture
when it is loaded. Only the render thread may load, close and try out; every thread may read.
"""

import hashlib
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine as Database

from common.catalog.catalog import Catalog, Model
from common.config import Settings
from common.db import transaction
from common.errors import Invalid, ModelRefused, OutOfMemory, RenderFailed, Unavailable
from common.log import log_event
from common.queue import workers
from common.queue.workers import Load
from common.recipes.recipe import canonical_json
from common.sentences import Sentence
from worker.models import sentence, weights
from worker.models.trial import Fault, Trials
from worker.pipelines import registry
from worker.pipelines.base import DeviceLost, Pipeline
from worker.watchdog import Watchdog

SWAP_DELAY_S = 30.0
NEVER_S = 1e9
ACCELERATORS = ("cuda", "mps")
DEFAULT_BATCH_SIZE = 8  # of a model that was never loaded here
REPORT_S = 30
RETRY_S = 300  # the hub may answer later; a folder stays as it is


@dataclass(frozen=True)
class LoadFailure:
    reason: str
    until: float  # by the monotonic clock


def models_to_serve(settings: Settings, catalog: Catalog, device_kind: str) -> list[Model]:
    """The models named in the settings, or all that suit this kind of device; the default one first.

    On a CPU, models of the hub must be named, or imported before: the download is large and rendering slow. Raises
    UnknownModel, or Invalid when there are none.
    """
    if settings.model_names:
        return [catalog.get(name) for name in settings.model_names]
    may_download = device_kind in (*ACCELERATORS, "stub")
    default = catalog.default_gpu if device_kind in ACCELERATORS else catalog.default
    models = [model for model in catalog.models.values() if model.is_local or may_download]
    if not models:
        raise Invalid(sentence("no_model_for_device", catalog=settings.catalog, device=device_kind))
    return sorted(models, key=lambda model: model.name != (settings.default_model or default))


class ModelManager:
    def __init__(
        self,
        models: Sequence[Model],
        settings: Settings,
        worker_class: Mapping[str, Any],
        database: Database,
        watchdog: Watchdog,
        name: str,
        quarantine: Callable[[Fault], object],
    ) -> None:
        """`name` is the worker's; `quarantine` is called when its host is at fault, and not a model."""
        self.trials = Trials(name, worker_class, database)
        self._quarantine = quarantine
        self._models = {model.name: model for model in models}
        self._device, self._threads, self._store = settings.device, settings.torch_threads, settings.model_store
        self._is_stub = self._device.startswith("stub")
        self._weights = {model.name: weights.known(model, self._store, self._is_stub) for model in models}
        self._class = worker_class
        self._memory = settings.model_memory or registry.model_memory(settings.device)
        self._database = database
        self._watchdog = watchdog
        self._pipelines: dict[str, Pipeline] = {}  # least recently used first; replaced as a whole, for other threads
        estimates = {model.name: registry.model_components(model, settings.device) for model in models}
        self._components = {name: sizes for name, sizes in estimates.items() if sizes is not None}  # exact once loaded
        self._batch_sizes: dict[str, int] = {}
        self._known_details: dict[str, Mapping[str, Any]] = {}
        self._failures: dict[str, LoadFailure] = {}
        self._loads: dict[str, Load] = {}
        self._last_load = 0.0

    @property
    def swap_delay_s(self) -> float:
        """Seconds that an image of another model must have waited before a resident model is evicted for it.

        0 if all models fit into memory together, NEVER_S soon after a load.
        """
        names = {model.name for model in self.available()} | set(self._pipelines)
        if self._fit(names):
            return 0.0
        delay = max(SWAP_DELAY_S, 4 * max((load.seconds for load in self._loads.values()), default=0.0))
        return delay if time.monotonic() - self._last_load > delay else NEVER_S

    @property
    def resident(self) -> tuple[str, ...]:
        """The models in memory, least recently used first."""
        return tuple(self._pipelines)

    def picture_classes(self, worker_class: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        """By model whose weights are known: these, and the class of its pictures on a worker of this class."""
        return {
            model.name: {"weights": known, "class": weights.picture_class(worker_class, self._details(model), model)}
            for model in self.available()
            if (known := self._weights[model.name])
        }

    def _details(self, model: Model) -> Mapping[str, Any]:
        if model.name not in self._known_details:
            self._known_details[model.name] = registry.details(model, self._device)
        return self._known_details[model.name]

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Images per call at the default size, of each model that was loaded since the start."""
        return dict(self._batch_sizes)

    @property
    def loads(self) -> dict[str, Load]:
        """The last load of each model since the start."""
        return dict(self._loads)

    def batch_size(self, model: Model) -> int:
        """The same for any model: its own, the catalogue's, or the default."""
        return self._batch_sizes.get(model.name) or model.microbatch or DEFAULT_BATCH_SIZE

    def available(self) -> list[Model]:
        """All models but those refused now."""
        refused = self.refusals()
        return [model for name, model in self._models.items() if name not in refused]

    def refusals(self) -> dict[str, str]:
        """By model: why this worker does not serve it now."""
        now = time.monotonic()
        return {name: failure.reason for name, failure in list(self._failures.items()) if now < failure.until}

    def get(self, name: str) -> Pipeline:
        """The pipeline of a model; loads it and evicts others if need be.

        Raises ModelRefused, which is remembered, or Unavailable while Postgres cannot give the revision to load.
        """
        if name not in self._pipelines:
            self._make_resident(self._models[name])
        found = self._pipelines[name]
        self._pipelines = {**_without(self._pipelines, name), name: found}
        return found

    def close(self) -> None:
        self._close(*self._pipelines)

    def _make_resident(self, model: Model) -> None:
        start = time.monotonic()
        try:
            with self._watchdog.watch("load"):
                pipeline = self._load_and_evict(model)
                self._try_out(pipeline)
                self._batch_sizes = {**self._batch_sizes, model.name: self._find_batch_size(pipeline)}
        except (Unavailable, DeviceLost):
            raise
        except RenderFailed as error:
            raise self._refuse(model, error.message, isinstance(error, ModelRefused) and _is_local(model)) from error
        except Exception as error:  # the other models can still be served
            log_event("model_load_failed", exc_info=True, model=model.name)
            reason = sentence("model_load_failed", model=model.name, error=type(error).__name__)
            raise self._refuse(model, reason, _is_local(model)) from error
        self._pipelines = {**self._pipelines, model.name: pipeline}
        self._weights = {**self._weights, model.name: pipeline.revision}
        seconds = time.monotonic() - start
        self._loads = {**self._loads, model.name: Load(seconds, is_first=not self._loads)}
        self._last_load = time.monotonic()
        self._failures.pop(model.name, None)
        log_event(
            "model_loaded",
            model=model.name,
            revision=pipeline.revision,
            seconds=seconds,
            bytes=sum(pipeline.components.values()),
            batch_size=self._batch_sizes[model.name],
        )

    def _refuse(self, model: Model, reason: Sentence, is_final: bool) -> ModelRefused:
        self._failures[model.name] = LoadFailure(reason, float("inf") if is_final else time.monotonic() + RETRY_S)
        log_event("model_refused", model=model.name, reason=reason)
        return ModelRefused(reason)

    def _try_out(self, pipeline: Pipeline) -> None:
        """Raises RenderFailed if the trial fails and may do so everywhere: no worker of this class had a good one."""
        fault = self.trials.fault(pipeline)
        if fault is None:
            return
        if not fault.known_picture and not self.trials.is_proven(pipeline):
            pipeline.close()
            raise RenderFailed(sentence("trial_refused", model=fault.model, reason=fault.why))
        self._quarantine(fault)

    # Memory

    def _fit(self, names: set[str]) -> bool:
        """Whether these models fit into memory together. False while a model's size is unknown."""
        return names <= self._components.keys() and self._total_bytes(names) <= self._memory

    def _total_bytes(self, names: set[str]) -> int:
        together: dict[Hashable, int] = {}
        for name in names:
            together |= self._components[name]
        return sum(together.values())

    def _load_and_evict(self, model: Model) -> Pipeline:
        """Evict first, so that the load has room; evict everything if that was not enough."""
        self._evict_for(model.name)
        try:
            pipeline = self._load(model)
        except OutOfMemory:
            if not self._pipelines:
                raise
            self._close(*self._pipelines)
            pipeline = self._load(model)
        self._components = {**self._components, model.name: pipeline.components}
        self._evict_for(model.name)
        return pipeline

    def _evict_for(self, name: str) -> None:
        while self._pipelines and not self._fit({*self._pipelines, name}):
            self._close(next(iter(self._pipelines)))

    def _close(self, *names: str) -> None:
        for name in names:
            pipeline = self._pipelines[name]
            self._pipelines = _without(self._pipelines, name)
            pipeline.close()

    # Loading

    def _find_batch_size(self, pipeline: Pipeline) -> int:
        """The catalogue's, the one that the first worker of this class recorded, or a new one by a benchmark."""
        model = pipeline.model
        if model.microbatch:
            return model.microbatch
        if self._is_stub:
            return pipeline.find_batch_size(0)
        key = {**self._class, **pipeline.details, "source": model.source, "size": [model.width, model.height]}
        digest = hashlib.sha256(canonical_json({**key, "revision": pipeline.revision}).encode()).hexdigest()
        with suppress(Unavailable), transaction(self._database) as connection:
            if recorded := workers.recorded_batch_size(connection, digest, model.name):
                return recorded
        own = sum(pipeline.components.values())
        found = pipeline.find_batch_size(max(self._memory, own) if len(self._models) > 1 else own)
        with suppress(Unavailable), transaction(self._database) as connection:
            return workers.record_batch_size(connection, digest, model.name, found)
        return found

    def _load(self, model: Model) -> Pipeline:
        if self._is_stub:
            revision = weights.known(model, self._store, is_stub=True)
            return registry.load(replace(model, revision=revision), self._device, self._threads)
        if model.source_path or model.revision:
            return self._import_and_load(model)
        with transaction(self._database) as connection:
            recorded = workers.recorded_revision(connection, model.name, model.source)
        pipeline = self._import_and_load(replace(model, revision=recorded))
        if recorded or not pipeline.revision:
            return pipeline
        with transaction(self._database) as connection:
            recorded = workers.record_revision(connection, model.name, model.source, pipeline.revision)
        if recorded == pipeline.revision:
            return pipeline
        pipeline.close()  # another worker was first, with another commit
        return self._import_and_load(replace(model, revision=recorded))

    def _import_and_load(self, model: Model) -> Pipeline:
        from worker.models import checkers, importer  # the stub works without their libraries

        def load(local: Model) -> Pipeline:
            return registry.load(local, self._device, self._threads)

        def log_progress(phase: str, done: int, total: int) -> None:
            log_event("model_imports", model=model.name, phase=phase, done=done, of=total)

        throttled = importer.throttled(log_progress, REPORT_S)

        def report(phase: str, done: int, total: int) -> None:
            self._watchdog.keep_alive()
            throttled(phase, done, total)

        checkers.ensure_imported(model, self._store, report)
        local = importer.ensure_imported(model, self._store, load, report)
        if local is model and model.source_path and model.source_path.is_dir():  # it is loaded where it is
            local = replace(model, revision=weights.of_folder(model, model.source_path, self._store))
        return load(local)


def _without(pipelines: Mapping[str, Pipeline], name: str) -> dict[str, Pipeline]:
    return {other: pipeline for other, pipeline in pipelines.items() if other != name}


def _is_local(model: Model) -> bool:
    """Whether nothing that it needs is on the hub."""
    return model.source_path is not None and (model.checker is None or model.checker.source_path is not None)
