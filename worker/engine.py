"""The render loop of one device: claim ahead, render, hand over to be stored while the next one renders.

    claim ──► begin ──► paint ──► hand over        `begin` loads the model if need be, and starts the lease
       └── ahead: in the last moments of `paint`

`work()` runs the loop in the thread of its caller: Celery's, woken by a message, or the engine's own, which tries at
every beat so that a deaf Redis only slows the farm. Painting has a thread of its own (`worker.brush`).
"""

import threading
import time
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from functools import partial
from uuid import UUID

from sqlalchemy import Engine as Database

from common import claims
from common.claims import Microbatch, Offer
from common.config import Settings
from common.db import new_id, transaction
from common.errors import Interrupted, RenderFailed, Unavailable
from common.telemetry import tell
from worker.brush import Brush, Rendering
from worker.gallery import Gallery
from worker.holdings import Holdings
from worker.outage import Outage
from worker.store import Painted, Store

WORK_S = 30.0  # how long one call of work() goes on
CLAIM_AHEAD_S = 0.3  # before the end of a microbatch: enough for a claim, too little for a better one to come up
START_AHEAD_S = 0.05
LOWER_TIER_EVERY = 20  # one microbatch in so many goes to the oldest lower tier
PATIENCE_S = 30.0


class Engine:
    def __init__(
        self,
        worker_id: UUID,
        settings: Settings,
        database: Database,
        gallery: Gallery,
        brush: Brush,
        holdings: Holdings,
        store: Store,
        database_outage: Outage,
    ) -> None:
        self.worker_id = worker_id
        self.gallery = gallery
        self.is_ready = False  # has a model in memory, or tried
        self._settings = settings
        self._database = database
        self._holdings = holdings
        self._store = store
        self._database_outage = database_outage
        self._brush = brush
        self._one_at_a_time = threading.Lock()
        self._claims = 0
        self._in_hand: dict[UUID, Microbatch] = {}  # claimed, and not yet handed over or given back
        self._paused = False
        self._draining = threading.Event()
        self._leave_at = float("inf")
        self._own_thread = threading.Thread(target=self._try_at_every_beat, name="idle", daemon=True)

    # Life

    def start(self) -> None:
        self._own_thread.start()

    def pause(self, paused: bool) -> None:
        """Claim nothing more until further notice; what is held is finished."""
        if paused and not self._paused:
            tell("worker_drains", worker=self.worker_id)
        self._paused = paused

    def drain(self) -> None:
        """For good: claim nothing more, and give back what cannot be finished in the time there is. Returns at once."""
        if not self._draining.is_set():
            self._leave_at = time.monotonic() + self._settings.drain_s
            self._draining.set()

    def close(self) -> bool:
        """Wait until the drain is over, the stored pictures published; False if the painter was still busy then."""
        self.drain()
        left = max(self._leave_at - time.monotonic(), 0) + 1
        if self._own_thread.is_alive():
            self._own_thread.join(left)
        self._store.close(max(self._leave_at - time.monotonic(), 1))
        return self._brush.close()

    @property
    def claims_nothing(self) -> bool:
        return self._paused or self._draining.is_set()

    def _try_at_every_beat(self) -> None:
        self._preload()
        while not self._draining.is_set():
            try:
                is_more = self.work(WORK_S)
            except Exception:
                tell("engine_failed", exc_info=True, worker=self.worker_id)
                is_more = False
            if not is_more:
                self._draining.wait(self._settings.beat_s)
        tell("worker_drains", worker=self.worker_id)

    def _preload(self) -> None:
        """Have a model in memory before the first job: the first one that is not refused."""
        for model in self.gallery.servable():
            try:
                self._load(model.name)
                break
            except Interrupted:
                return
            except (RenderFailed, Unavailable):
                continue
        self.is_ready = True
        if not self.gallery.servable():
            tell("nothing_to_serve", worker=self.worker_id)

    # The loop

    def work(self, seconds: float = WORK_S) -> bool:
        """Render until nothing waits or the time is up; True if the time was up. One caller at a time, others wait."""
        until = time.monotonic() + seconds
        while not self._one_at_a_time.acquire(timeout=0.2):
            if self._draining.is_set():
                return False
        try:
            current = self._claim(until)
            while current:
                ahead = None
                if self._begin(current):
                    painting = self._brush.paint(current, partial(self._check, current.microbatch.lease_id))
                    try:
                        ahead = self._claim_ahead(current, painting, until)
                    finally:
                        self._hand_over(current, painting)
                current = ahead or self._claim(until)
            return time.monotonic() >= until and not self.claims_nothing
        finally:
            for microbatch in list(self._in_hand.values()):  # only after an exception
                self._give_back(microbatch, "the engine failed")
            self._one_at_a_time.release()

    def _claim(self, until: float) -> Rendering | None:
        """The best microbatch there is, as soon as there is room for its pictures; None when the time is up."""
        while not self._holdings.wait_for_room(min(0.2, max(until - time.monotonic(), 0))):
            if self.claims_nothing or time.monotonic() >= until:
                return None
        capacity = {model.name: model.microbatch for model in self.gallery.servable()}
        if not capacity or self.claims_nothing or time.monotonic() >= until:
            return None
        offer = Offer(
            self.worker_id,
            capacity,
            self.gallery.resident,
            max(PATIENCE_S, 4 * self.gallery.longest_load_s),
            lower_tier=self._claims % LOWER_TIER_EVERY == LOWER_TIER_EVERY - 1,
        )
        lease_id = new_id()
        try:
            with self._database_outage.noticed(), transaction(self._database) as connection:
                microbatch = claims.claim(connection, offer, lease_id, self._settings.lease_s)
        except Unavailable:
            self._holdings.abandon(lease_id)  # the claim may have gone through
            return None
        if microbatch is None:
            return None
        self._claims += 1
        self._holdings.take(microbatch)
        self._in_hand[lease_id] = microbatch
        tell("microbatch_claimed", **self._store.facts(microbatch))
        return Rendering(microbatch)

    def _claim_ahead(self, current: Rendering, painting: "Future[Painted]", until: float) -> Rendering | None:
        """In the last moments of a microbatch claim the next, and start it too if its model is the one at hand."""
        self._wait_until_nearly_done(current, painting, CLAIM_AHEAD_S)
        if not self._holdings.wait_for_room(0):
            return None
        ahead = self._claim(until)
        if ahead and ahead.microbatch.model in self.gallery.resident:
            self._wait_until_nearly_done(current, painting, START_AHEAD_S)
            if not self._draining.is_set():
                self._start(ahead)
        return ahead

    def _wait_until_nearly_done(self, current: Rendering, painting: "Future[Painted]", seconds: float) -> None:
        while not painting.done() and not self._draining.is_set() and (left := current.seconds_left()) > seconds:
            wait_for([painting], timeout=min(max(left - seconds, 0.002), 0.1))

    def _begin(self, rendering: Rendering) -> bool:
        """Make the model resident and start the lease. False when there is nothing to paint: it was given back."""
        microbatch = rendering.microbatch
        if self._draining.is_set():
            return self._give_back(microbatch, "this worker drains")
        try:
            if microbatch.model not in self.gallery.resident:
                self._load(microbatch.model)
        except (RenderFailed, Unavailable) as error:
            return self._give_back(microbatch, error.message)
        self._start(rendering)
        if not rendering.images:
            return self._give_back(microbatch, "none of its images can be started now")
        return True

    def _load(self, model: str) -> None:
        """Make a model resident. Raises Interrupted in a drain: nobody can stop a load, but nobody need wait for it."""
        loading = self._brush.load(model)
        while wait_for([loading], timeout=0.2).not_done:
            if self._draining.is_set():
                raise Interrupted("this worker drains")
        loading.result()

    def _start(self, rendering: Rendering) -> None:
        """Start the lease, once. Nothing of it can be rendered while Postgres is away."""
        if rendering.images is not None:
            return
        rendering.images = ()
        microbatch = rendering.microbatch
        try:
            with self._database_outage.noticed(), transaction(self._database) as connection:
                wanted = claims.start(connection, microbatch)
        except Unavailable:
            return
        self._holdings.keep(microbatch.lease_id, wanted)
        rendering.images = tuple(image for image in microbatch.images if image.id in wanted)

    def _give_back(self, microbatch: Microbatch, reason: str) -> bool:
        self._in_hand.pop(microbatch.lease_id, None)
        self._store.give_back(microbatch, reason)
        return False

    def _check(self, lease_id: UUID) -> None:
        """At every step, in the painting thread: raises Interrupted when it is better to stop."""
        if not self._holdings.wanted(lease_id):
            raise Interrupted("nobody wants its images any more")
        rendering = self._brush.rendering
        if rendering and time.monotonic() + rendering.seconds_left() > self._leave_at:
            raise Interrupted("this worker drains and would not finish it in time")

    def _hand_over(self, rendering: Rendering, painting: "Future[Painted]") -> None:
        try:
            self._store.accept(painting.result())
            self._in_hand.pop(rendering.microbatch.lease_id, None)
        except Interrupted as error:
            self._give_back(rendering.microbatch, error.message)
        except Exception:
            tell("engine_failed", exc_info=True, **self._store.facts(rendering.microbatch))
            self._give_back(rendering.microbatch, "the engine failed")
