"""How a quarantine ends: by good trial pictures. Knows no pipeline."""

from collections.abc import Callable
from concurrent.futures import Future

from sqlalchemy import Engine as Database

from common.errors import RenderFailed, Unavailable
from worker.availability import Availability
from worker.models.manager import ModelManager
from worker.models.trial import Fault
from worker.quarantine.quarantine import CANNOT_STORE, Quarantine


class Recovery:
    """How a quarantine ends. For the loop, which calls it from one thread at a time."""

    def __init__(
        self,
        quarantine: Quarantine,
        models: ModelManager,
        try_out: Callable[[str], Future[Fault | None]],
        wait_for: Callable[[Future[Fault | None]], Fault | None],
        database: Database,
        availability: Availability,
    ) -> None:
        """`try_out` renders trial pictures of a model on the render thread; `wait_for` raises Interrupted at a stop."""
        self._quarantine = quarantine
        self._models = models
        self._try_out = try_out
        self._wait_for = wait_for
        self._database = database
        self._availability = availability

    def is_over(self) -> bool:
        """Whether this worker may claim. If it is quarantined and a trial is due, the trial comes first.

        False while Postgres cannot tell a new process.
        """
        if self._quarantine.is_active or not self._quarantine.is_known:
            try:
                with self._availability.tracked():
                    self._quarantine.sync(self._database)
                    if self._quarantine.is_active and self._quarantine.take_trial(self._database) and self._is_well():
                        self._quarantine.lift(self._database)
            except (Unavailable, RenderFailed):
                return False
        return not self._quarantine.is_active

    def _is_well(self) -> bool:
        """Whether the trial pictures of the model that failed are good; of another one if it is not served now.

        A worker that could not store has to store something first.
        Raises RenderFailed if the model cannot be loaded, and Interrupted.
        """
        if self._quarantine.code == CANNOT_STORE and not self._quarantine.can_store():
            return False
        served = [model.name for model in self._models.available()]
        resident = [name for name in self._models.resident if name in served]
        wanted = [name for name in (self._quarantine.model, *resident, *served) if name in served]
        return bool(wanted) and self._wait_for(self._try_out(wanted[0])) is None
