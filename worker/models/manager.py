"""The models that this worker serves: which are in memory, how much each can take, which it refuses and why.

Holds as many painters as its memory allows; the one not used for longest makes room. Loads and closes painters, so it
belongs to the painting thread; everybody may read. A hub model is loaded at the revision that the first worker of the
farm recorded, so that all paint with the same weights; its capacity was found by the first worker of this class. What
several models have in common is in memory once, and counted once.
"""

import hashlib
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine

from common.catalog.catalog import Catalog, Model
from common.config import Settings
from common.db import transaction
from common.errors import Invalid, ModelRefused, OutOfMemory, RenderFailed, Unavailable
from common.log import log_event
from common.queue import workers
from common.recipes.recipe import canonical_json
from worker.pipelines import registry
from worker.pipelines.base import DeviceLost, Pipeline
from worker.watchdog import Watchdog

SWAP_DELAY_S = 30.0
FOR_EVER_S = 1e9
ACCELERATORS = ("cuda", "mps")
DEFAULT_BATCH_SIZE = (
    8  # the images that are claimed for a model of which this worker does not know yet how many it can take
)
REPORT_S = 30
RETRY_S = 300  # a refused model of the hub may be within reach later; a folder does not mend itself


@dataclass(frozen=True)
class LoadFailure:
    reason: str
    until: float  # by the monotonic clock


def models_to_serve(settings: Settings, catalog: Catalog, device_kind: str) -> list[Model]:
    """The models named in the settings, or all that this device can be expected to serve; the default one first.

    A model of the hub is a large download that no CPU would paint with in useful time: there it must be named, or
    imported by hand.
    Raises UnknownModel, or Invalid when there are none.
    """
    if settings.model_names:
        return [catalog.get(name) for name in settings.model_names]
    has_hub = device_kind in (*ACCELERATORS, "stub")
    default = catalog.default_gpu if device_kind in ACCELERATORS else catalog.default
    models = [model for model in catalog.models.values() if model.is_local or has_hub]
    if not models:
        raise Invalid(f"No model of {settings.catalog} is for a {device_kind}; name those to serve in HUAFANG_MODELS.")
    return sorted(models, key=lambda model: model.name != (settings.default_model or default))


class ModelManager:
    def __init__(
        self,
        models: Sequence[Model],
        settings: Settings,
        worker_class: Mapping[str, Any],
        database: Engine,
        watchdog: Watchdog,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._device, self._threads, self._store = settings.device, settings.torch_threads, settings.model_store
        self._class = worker_class
        self._memory = settings.model_memory or registry.model_memory(settings.device)
        self._database = database
        self._watchdog = watchdog
        self._painters: dict[str, Pipeline] = {}  # the one used last is the last; replaced as a whole: others read it
        parts = {model.name: registry.model_components(model, settings.device) for model in models}
        self._parts = {name: sizes for name, sizes in parts.items() if sizes is not None}  # better known after the load
        self._capacities: dict[str, int] = {}
        self._refusals: dict[str, LoadFailure] = {}
        self._longest_load_s = 0.0
        self._last_load = 0.0

    @property
    def patience_s(self) -> float:
        """How long images of other models wait before a resident one makes room; for ever while one only just came.

        Where all find room at once, nobody has to go and nobody need wait.
        """
        names = {model.name for model in self.servable()} | set(self._painters)
        if self._fit(names):
            return 0.0
        patience = max(SWAP_DELAY_S, 4 * self._longest_load_s)
        return patience if time.monotonic() - self._last_load > patience else FOR_EVER_S

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(self._painters)

    @property
    def capacities(self) -> dict[str, int]:
        """The images that one call had best render together, of the models that were loaded once."""
        return dict(self._capacities)

    def capacity(self, model: Model) -> int:
        """The same of any model."""
        return self._capacities.get(model.name) or model.microbatch or DEFAULT_BATCH_SIZE

    def servable(self) -> list[Model]:
        """All but those refused lately."""
        refused = self.refusals()
        return [model for name, model in self._models.items() if name not in refused]

    def refusals(self) -> dict[str, str]:
        now = time.monotonic()
        return {name: refusal.reason for name, refusal in list(self._refusals.items()) if now < refusal.until}

    def painter(self, name: str) -> Pipeline:
        """The painter of a model, loaded if need be, in place of those not used for longest.

        Raises ModelRefused, and remembers it; Unavailable when Postgres cannot say which revision to load.
        """
        if name not in self._painters:
            self._make_resident(self._models[name])
        found = self._painters[name]
        self._painters = {**_without(self._painters, name), name: found}
        return found

    def close(self) -> None:
        self._close(*self._painters)

    def _make_resident(self, model: Model) -> None:
        began = time.monotonic()
        try:
            with self._watchdog.watch("load"):
                loaded = self._load_beside_others(model)
                self._capacities = {**self._capacities, model.name: self._capacity(loaded)}
        except (Unavailable, DeviceLost):
            raise
        except RenderFailed as error:
            is_final = isinstance(error, ModelRefused) and model.source_path is not None
            raise self._refuse(model, error.message, is_final) from error
        except Exception as error:  # whatever it is, the other models go on
            log_event("model_load_failed", exc_info=True, model=model.name)
            reason = f"The model {model.name} is refused: it cannot be loaded ({type(error).__name__})."
            raise self._refuse(model, reason, model.source_path is not None) from error
        self._painters = {**self._painters, model.name: loaded}
        seconds = time.monotonic() - began
        self._longest_load_s = max(seconds, self._longest_load_s)
        self._last_load = time.monotonic()
        self._refusals.pop(model.name, None)
        log_event(
            "model_loaded",
            model=model.name,
            revision=loaded.revision,
            seconds=seconds,
            bytes=sum(loaded.parts.values()),
            capacity=self._capacities[model.name],
        )

    # Memory

    def _fit(self, names: set[str]) -> bool:
        """Whether these models find room at once. Of one that has to be fetched it is known once it was loaded."""
        return names <= self._parts.keys() and self._bytes(*names) <= self._memory

    def _bytes(self, *names: str) -> int:
        """What these models take together: a part that several have is in memory once."""
        together: dict[Hashable, int] = {}
        for name in names:
            together |= self._parts[name]
        return sum(together.values())

    def _load_beside_others(self, model: Model) -> Pipeline:
        """Room is made before it is needed, and more of it where that was not enough."""
        self._make_room(model.name)
        try:
            loaded = self._load(model)
        except OutOfMemory:
            if not self._painters:
                raise
            self._close(*self._painters)
            loaded = self._load(model)
        self._parts = {**self._parts, model.name: loaded.parts}
        self._make_room(model.name)
        return loaded

    def _make_room(self, name: str) -> None:
        while self._painters and not self._fit({*self._painters, name}):
            self._close(next(iter(self._painters)))

    def _close(self, *names: str) -> None:
        for name in names:
            closing = self._painters[name]
            self._painters = _without(self._painters, name)
            closing.close()

    # Loading

    def _capacity(self, loaded: Pipeline) -> int:
        """As the catalogue has it, as the first worker of this class found it, or as it is found now."""
        model = loaded.model
        if model.microbatch:
            return model.microbatch
        if self._device.startswith("stub"):
            return loaded.find_capacity(0)
        decisive = {**self._class, **loaded.details, "source": model.source, "size": [model.width, model.height]}
        digest = hashlib.sha256(canonical_json({**decisive, "revision": loaded.revision}).encode()).hexdigest()
        with suppress(Unavailable), transaction(self._database) as connection:
            if recorded := workers.recorded_capacity(connection, digest, model.name):
                return recorded
        own = sum(loaded.parts.values())
        found = loaded.find_capacity(max(self._memory, own) if len(self._models) > 1 else own)
        with suppress(Unavailable), transaction(self._database) as connection:
            return workers.record_capacity(connection, digest, model.name, found)
        return found

    def _load(self, model: Model) -> Pipeline:
        if self._device.startswith("stub"):
            return registry.load(model, self._device, self._threads)
        if model.source_path or model.revision:
            return self._load_here(model)
        with transaction(self._database) as connection:
            recorded = workers.recorded_revision(connection, model.name, model.source)
        loaded = self._load_here(replace(model, revision=recorded))
        if recorded or not loaded.revision:
            return loaded
        with transaction(self._database) as connection:
            recorded = workers.record_revision(connection, model.name, model.source, loaded.revision)
        if recorded == loaded.revision:
            return loaded
        loaded.close()  # another worker was first, with another commit
        return self._load_here(replace(model, revision=recorded))

    def _load_here(self, model: Model) -> Pipeline:
        """Load it as it lies on this host, where it is imported first if need be."""
        from worker.models import importer  # no painter that is a stub needs the libraries that it does

        def load(here: Model) -> Pipeline:
            return registry.load(here, self._device, self._threads)

        def say(phase: str, done: int, total: int) -> None:
            log_event("model_imports", model=model.name, phase=phase, done=done, of=total)

        seldom = importer.throttled(say, REPORT_S)

        def report(phase: str, done: int, total: int) -> None:
            self._watchdog.keep_alive()
            seldom(phase, done, total)

        return load(importer.ensure_imported(model, self._store, load, report))

    def _refuse(self, model: Model, reason: str, is_final: bool) -> ModelRefused:
        self._refusals[model.name] = LoadFailure(reason, float("inf") if is_final else time.monotonic() + RETRY_S)
        log_event("model_refused", model=model.name, reason=reason)
        return ModelRefused(reason)


def _without(painters: Mapping[str, Pipeline], name: str) -> dict[str, Pipeline]:
    return {other: painter for other, painter in painters.items() if other != name}
