"""The workers that are alive, and what they say about a model: who serves it, who refuses it, how fast it is drawn."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from api.schemas import WaitingFor
from common.enums import WorkerState


@dataclass(frozen=True)
class FleetWorker:
    name: str
    state: WorkerState
    models: Sequence[str]
    resident: Sequence[str]
    refusals: Mapping[str, str]
    seconds_per_image: Mapping[str, float]


class Fleet:
    """`members`: the answer to MEMBERS_JSON."""

    def __init__(self, members: Iterable[Mapping[str, Any]] | None) -> None:
        self.members = [FleetWorker(**member) for member in members or ()]

    def serving(self, model: str) -> list[FleetWorker]:
        return [member for member in self.members if model in member.models]

    def refusing(self, model: str) -> list[FleetWorker]:
        return [member for member in self.members if model in member.refusals]

    def images_per_second(self, model: str) -> float | None:
        """How fast the workers that take new work draw this model together; None while none has measured it."""
        return sum(self._speeds(model)) or None

    def taking(self, model: str) -> int:
        """How many workers that is."""
        return len(self._speeds(model))

    def _speeds(self, model: str) -> list[float]:
        taking = [member for member in self.serving(model) if member.state == WorkerState.READY]
        return [1 / seconds for member in taking if (seconds := member.seconds_per_image.get(model))]

    def why(self, model: str, *, backs_off: bool) -> WaitingFor:
        """Why a job of this model waits."""
        serving = self.serving(model)
        if not serving:
            if refusing := self.refusing(model):
                first = refusing[0]
                return WaitingFor(code="model_refused", message=f"{first.name} refuses it: {first.refusals[model]}")
            return WaitingFor(code="no_worker", message=f"No worker that is up serves {model}.")
        if all(member.state == WorkerState.DRAINING for member in serving):
            return WaitingFor(code="draining", message=f"Every worker that serves {model} is draining.")
        if backs_off:
            return WaitingFor(code="backing_off", message="An attempt failed; it is tried again shortly.")
        return WaitingFor(code="workers_busy", message=f"It waits for its turn on {names(serving)}.")


def names(members: Sequence[FleetWorker]) -> str:
    shown = ", ".join(member.name for member in members[:3])
    return f"{shown} and {len(members) - 3} more" if len(members) > 3 else shown


def read_fleet(connection: Connection) -> Fleet:
    return Fleet(connection.execute(text(WORKERS_JSON)).scalar())


WORKERS_JSON = """
    SELECT json_agg(member) FROM (
        SELECT name, state, models, resident, refusals, seconds_per_image FROM workers
        WHERE state <> 'stopped' ORDER BY name, id) AS member"""
