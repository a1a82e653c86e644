"""The page to read first: the four tasks that Celery runs. A message only wakes a worker; Postgres decides the work.

    render   on the queue of each model that a render worker serves: render what waits, for about half a minute
    sweep    on the control queue: repair once, now
    advance  on the control queue: check, expand or settle a batch, for some seconds
    export   on the control queue: write a dataset, as far as its batch has come

What the tasks do is in `worker.render.loop`, `worker.control.sweep`, `worker.control.batch_expander` and
`worker.datasets.exporter`. A lost message costs seconds; a spare one costs one query. A newer version may send fields
that this one does not know: they are ignored. Importing this loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from celery import Celery

from common.broker import CONTROL_QUEUE, Broker
from common.errors import Unavailable
from worker.control.batch_expander import Expander
from worker.control.sweep import Sweep

if TYPE_CHECKING:  # a control worker has none of the loop's libraries, a render worker none of the exporter's
    from worker.datasets.exporter import Exporter
    from worker.render.loop import RenderLoop


def add_render(app: Celery, loop: RenderLoop, broker: Broker) -> None:
    @app.task(name="render")
    def render(model: str, job: str | None = None, tier: str | None = None, **_: object) -> None:
        """Claim and render while there is work, whichever job the message named; then let Celery run other tasks."""
        if loop.run():
            broker.wake(model)


def add_sweep(app: Celery, sweep: Sweep) -> None:
    @app.task(name="sweep", queue=CONTROL_QUEUE)
    def sweep_once(**_: object) -> None:
        sweep.once()


def add_advance(app: Celery, expander: Expander, broker: Broker) -> None:
    @app.task(name="advance", queue=CONTROL_QUEUE)
    def advance(batch: str, **_: object) -> None:
        """Do what the batch needs next, or first what one of another tenant does; then let Celery run other tasks."""
        try:
            chosen = expander.choose(UUID(batch))
            if chosen and (expander.work(chosen) or chosen != UUID(batch)):
                broker.advance(UUID(batch))
        except Unavailable:
            pass  # the sweep sends the message again


def add_export(app: Celery, exporter: Exporter, broker: Broker) -> None:
    @app.task(name="export", queue=CONTROL_QUEUE)
    def export(dataset: str, **_: object) -> None:
        """Continue a dataset in a thread of its own, in turns with others; this one is free for batches."""
        exporter.start(UUID(dataset), broker.export)
