"""The models that this worker serves: which is in memory, and which it refuses and why. Holds one painter at a time.

Loads and closes painters, so it belongs to the engine's painting thread; everybody may read. A hub model is loaded at
the revision that the first worker of the farm recorded, so that all paint with the same weights.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Engine

from common import workers
from common.catalog import Catalog, Model
from common.config import Settings
from common.db import transaction
from common.errors import Invalid, ModelRefused, RenderFailed, Unavailable
from common.telemetry import tell
from worker import painter
from worker.painter import DeviceLost, Painter
from worker.watchdog import Watchdog

PATIENCE_S = 30.0
FOR_EVER_S = 1e9
ACCELERATORS = ("cuda", "mps")
DOWNLOAD_TIMES = 24  # a model of the hub may have to be fetched first, and takes that many times longer at most
RETRY_S = 300  # a refused model of the hub may be within reach later; a folder does not mend itself


@dataclass(frozen=True)
class Refusal:
    reason: str
    until: float  # by the monotonic clock


def models_to_serve(settings: Settings, catalog: Catalog, device_kind: str) -> list[Model]:
    """The models named in the settings, or all that this device can be expected to serve; the default one first.

    A model of the hub is a large download that no CPU would paint with in useful time: there it must be named.
    Raises UnknownModel, or Invalid when there are none.
    """
    if settings.model_names:
        return [catalog.get(name) for name in settings.model_names]
    has_hub = device_kind in (*ACCELERATORS, "stub")
    default = catalog.default_gpu if device_kind in ACCELERATORS else catalog.default
    models = [model for model in catalog.models.values() if model.folder or has_hub]
    if not models:
        raise Invalid(f"No model of {settings.catalog} is for a {device_kind}; name those to serve in HUAFANG_MODELS.")
    return sorted(models, key=lambda model: model.name != (settings.default_model or default))


class Gallery:
    def __init__(
        self, models: Sequence[Model], device: str, threads: int | None, database: Engine, watchdog: Watchdog
    ) -> None:
        self._models = {model.name: model for model in models}
        self._device = device
        self._threads = threads
        self._database = database
        self._watchdog = watchdog
        self._painter: Painter | None = None
        self._refusals: dict[str, Refusal] = {}
        self._longest_load_s = 0.0
        self._resident_since = 0.0

    @property
    def patience_s(self) -> float:
        """How long images of other models wait before the resident one makes room; for ever while it only just came."""
        patience = max(PATIENCE_S, 4 * self._longest_load_s)
        return patience if time.monotonic() - self._resident_since > patience else FOR_EVER_S

    @property
    def resident(self) -> tuple[str, ...]:
        resident = self._painter
        return (resident.model.name,) if resident else ()

    def servable(self) -> list[Model]:
        """All but those refused lately."""
        refused = self.refusals()
        return [model for name, model in self._models.items() if name not in refused]

    def refusals(self) -> dict[str, str]:
        now = time.monotonic()
        return {name: refusal.reason for name, refusal in list(self._refusals.items()) if now < refusal.until}

    def painter(self, name: str) -> Painter:
        """The painter of a model, loaded if need be in place of the one there was.

        Raises ModelRefused, and remembers it; Unavailable when Postgres cannot say which revision to load.
        """
        if self._painter and self._painter.model.name == name:
            return self._painter
        if self._painter:
            self._painter.close()
            self._painter = None
        model, began = self._models[name], time.monotonic()
        try:
            with self._watchdog.watches("load", 1 if model.folder else DOWNLOAD_TIMES):
                self._painter = self._load(model)
        except (Unavailable, DeviceLost):
            raise
        except RenderFailed as error:
            is_final = isinstance(error, ModelRefused) and model.folder is not None
            raise self._refuse(model, error.message, is_final) from error
        except Exception as error:  # whatever it is, the other models go on
            tell("model_load_failed", exc_info=True, model=name)
            reason = f"The model {name} is refused: it cannot be loaded ({type(error).__name__})."
            raise self._refuse(model, reason, model.folder is not None) from error
        seconds = time.monotonic() - began
        self._longest_load_s = max(seconds, self._longest_load_s)
        self._resident_since = time.monotonic()
        self._refusals.pop(name, None)
        tell("model_loaded", model=name, revision=self._painter.revision, seconds=seconds)
        return self._painter

    def close(self) -> None:
        if self._painter:
            self._painter.close()
            self._painter = None

    def _load(self, model: Model) -> Painter:
        if model.folder or model.revision or self._device.startswith("stub"):
            return painter.load(model, self._device, self._threads)
        with transaction(self._database) as connection:
            recorded = workers.recorded_revision(connection, model.name, model.source)
        loaded = painter.load(replace(model, revision=recorded), self._device, self._threads)
        if recorded or not loaded.revision:
            return loaded
        with transaction(self._database) as connection:
            recorded = workers.record_revision(connection, model.name, model.source, loaded.revision)
        if recorded == loaded.revision:
            return loaded
        loaded.close()  # another worker was first, with another commit
        return painter.load(replace(model, revision=recorded), self._device, self._threads)

    def _refuse(self, model: Model, reason: str, is_final: bool) -> ModelRefused:
        self._refusals[model.name] = Refusal(reason, float("inf") if is_final else time.monotonic() + RETRY_S)
        tell("model_refused", model=model.name, reason=reason)
        return ModelRefused(reason)
