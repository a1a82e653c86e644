"""The workers that are alive, and what they say about a model: who serves it, who refuses it, how fast it is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from api.shapes import WaitingFor
from common.states import WorkerState


@dataclass(frozen=True)
class Crew:
    workers: Sequence[Row[Any]]

    def serving(self, model: str) -> list[Row[Any]]:
        return [worker for worker in self.workers if model in worker.models]

    def refusing(self, model: str) -> list[Row[Any]]:
        return [worker for worker in self.workers if model in worker.refusals]

    def images_per_second(self, model: str) -> float | None:
        """How fast the workers that take new work draw this model together; None while none has measured it."""
        taking = [worker for worker in self.serving(model) if worker.state == WorkerState.READY]
        speeds = [1 / seconds for worker in taking if (seconds := worker.seconds_per_image.get(model))]
        return sum(speeds) or None

    def why(self, model: str, *, backs_off: bool) -> WaitingFor:
        """Why a job of this model waits."""
        serving = self.serving(model)
        if not serving:
            if refusing := self.refusing(model):
                first = refusing[0]
                return WaitingFor(code="model_refused", message=f"{first.name} refuses it: {first.refusals[model]}")
            return WaitingFor(code="no_worker", message=f"No worker that is up serves {model}.")
        if all(worker.state == WorkerState.DRAINING for worker in serving):
            return WaitingFor(code="draining", message=f"Every worker that serves {model} is draining.")
        if backs_off:
            return WaitingFor(code="backing_off", message="An attempt failed; it is tried again shortly.")
        return WaitingFor(code="workers_busy", message=f"It waits for its turn on {names(serving)}.")


def names(workers: Sequence[Row[Any]]) -> str:
    shown = ", ".join(worker.name for worker in workers[:3])
    return f"{shown} and {len(workers) - 3} more" if len(workers) > 3 else shown


def read_crew(connection: Connection) -> Crew:
    return Crew(connection.execute(ALIVE).all())


ALIVE = text("""
    SELECT id, name, state, models, resident, refusals, seconds_per_image FROM workers
    WHERE state <> 'stopped' ORDER BY name, id
""")
