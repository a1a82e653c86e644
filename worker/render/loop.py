"""The render loop of one device: claim ahead, render, hand over to be stored while the next one renders.

    claim ──► begin ──► paint ──► hand over        `begin` loads the model if need be, and starts the lease
       └── ahead: in the last moments of `paint`; what is ready for the brush then waits in the brush's own queue, so
           that the device goes from one microbatch to the next without a word from anybody

`work()` runs the loop in the thread of its caller: Celery's, woken by a message, or the engine's own, which tries at
every beat so that a deaf Redis only slows the farm. Painting has a thread of its own (`worker.render.render_thread`).
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import wait as wait_for
from functools import partial
from uuid import UUID

from sqlalchemy import Engine as Database

from common.config import Settings
from common.db import new_id, transaction
from common.errors import Interrupted, RenderFailed, Unavailable
from common.log import log_event
from common.queue import claim as claims
from common.queue import leases
from common.queue.claim import Microbatch, Offer
from worker.availability import Availability
from worker.models.manager import ModelManager
from worker.render.inflight import HeldLeases, InflightMicrobatch
from worker.render.input_images import InputImageLoader
from worker.render.render_thread import RenderThread
from worker.render.uploader import Uploader

WORK_S = 30.0  # how long one call of work() goes on
CLAIM_AHEAD_S = 0.3  # before the end of a microbatch: enough for a claim, too little for a better one to come up
START_AHEAD_S = 0.1  # three commits of a slow disk; whatever is started counts as an attempt if this process dies
LOWER_TIER_EVERY = 20  # one microbatch in so many goes to the oldest lower tier


class RenderLoop:
    def __init__(
        self,
        worker_id: UUID,
        settings: Settings,
        database: Database,
        gallery: ModelManager,
        grounds: InputImageLoader,
        brush: RenderThread,
        holdings: HeldLeases,
        store: Uploader,
        database_outage: Availability,
        wake: Callable[[str], object],
    ) -> None:
        """`wake` wakes a worker that serves a model."""
        self.worker_id = worker_id
        self.gallery = gallery
        self.is_ready = False  # has a model in memory, or tried
        self._settings = settings
        self._database = database
        self._holdings = holdings
        self._store = store
        self._database_outage = database_outage
        self._wake = wake
        self._grounds = grounds
        self._brush = brush
        self._one_at_a_time = threading.Lock()
        self._claims = 0
        self._in_hand: dict[UUID, InflightMicrobatch] = {}  # claimed, and not yet handed over or given back
        self._paused = False
        self._ends = False
        self._draining = threading.Event()
        self._paused_until = self._drained_until = float("inf")  # when what is not finished is given back
        self._own_thread = threading.Thread(target=self._try_at_every_beat, name="idle", daemon=True)

    # Life

    def start(self) -> None:
        self._own_thread.start()

    def pause(self, paused: bool) -> None:
        """Drain until further notice: claim nothing more, give back what cannot be finished in the time there is."""
        if paused == self._paused:
            return
        self._paused_until = time.monotonic() + self._settings.drain_s if paused else float("inf")
        self._paused = paused
        if paused:
            log_event("worker_drains", worker=self.worker_id)

    def drain(self) -> None:
        """Drain for good; asked a second time, give back at once what is not finished. Returns at once."""
        if self._draining.is_set():
            self._drained_until = time.monotonic()
            self._store.hurry()
        else:
            self._drained_until = time.monotonic() + self._settings.drain_s
            self._draining.set()

    def end(self) -> None:
        """This process is about to end. What is being painted is lost with it, and counts; the rest is given back."""
        self._ends = True
        for rendering in list(self._in_hand.values()):
            if rendering is not self._brush.rendering:
                self._give_back(rendering.microbatch, "this worker ends itself")

    def close(self) -> bool:
        """Wait until the drain is over, the stored pictures published; False if the painter was still busy then."""
        if not self._draining.is_set():
            self.drain()
        while self._own_thread.is_alive() and time.monotonic() < self._drained_until + 1:
            self._own_thread.join(0.1)
        self._store.close(max(self._drained_until - time.monotonic(), 1))
        self._grounds.close()
        return self._brush.close()

    @property
    def _leave_at(self) -> float:
        return min(self._paused_until, self._drained_until)

    @property
    def claims_nothing(self) -> bool:
        return self._paused or self._ends or self._draining.is_set()

    def _try_at_every_beat(self) -> None:
        self._preload()
        while not self._draining.is_set():
            try:
                is_more = self.work(WORK_S)
            except Exception:
                log_event("engine_failed", exc_info=True, worker=self.worker_id)
                is_more = False
            if not is_more:
                self._draining.wait(self._settings.beat_s)
        log_event("worker_drains", worker=self.worker_id)

    def _preload(self) -> None:
        """Have a model in memory before the first job: the first one that is not refused."""
        for model in self.gallery.available():
            try:
                self._load(model.name)
                break
            except Interrupted:
                return
            except (RenderFailed, Unavailable):
                continue
        self.is_ready = True
        if not self.gallery.available():
            log_event("nothing_to_serve", worker=self.worker_id)

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
                if current.painting or self._begin(current):
                    try:
                        ahead = self._claim_ahead(current, until)
                    finally:
                        self._hand_over(current)
                current = ahead or self._claim(until)
            return time.monotonic() >= until and not self.claims_nothing
        finally:
            for rendering in list(self._in_hand.values()):  # only after an exception
                self._give_back(rendering.microbatch, "the engine failed")
            self._one_at_a_time.release()

    def _claim(self, until: float) -> InflightMicrobatch | None:
        """The best microbatch there is, as soon as there is room for its pictures; None when the time is up."""
        while not self._holdings.wait_for_room(min(0.2, max(until - time.monotonic(), 0))):
            if self.claims_nothing or time.monotonic() >= until:
                return None
        capacity = {model.name: self._brush.capacity(model) for model in self.gallery.available()}
        if not capacity or self.claims_nothing or time.monotonic() >= until:
            return None
        offer = Offer(
            self.worker_id,
            capacity,
            self.gallery.resident,
            self.gallery.swap_delay_s,
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
        is_full = len(microbatch.images) == capacity[microbatch.model]
        grounds = self._grounds.fetch(
            microbatch, unless=lambda: self.claims_nothing or not self._holdings.wanted(lease_id)
        )
        rendering = self._in_hand[lease_id] = InflightMicrobatch(microbatch, is_full, grounds)
        log_event("microbatch_claimed", **self._store.facts(microbatch))
        return rendering

    def _claim_ahead(self, current: InflightMicrobatch, until: float) -> InflightMicrobatch | None:
        """In the last moments of a microbatch claim the next; have it painted right after if its model is at hand."""
        self._wait_until_nearly_done(current, CLAIM_AHEAD_S)
        if not self._holdings.wait_for_room(0):
            return None
        ahead = self._claim(until)
        is_suspect = current.microbatch.suspect or (ahead and ahead.microbatch.suspect)
        if ahead and not is_suspect and ahead.microbatch.model in self.gallery.resident:
            self._wait_until_nearly_done(current, START_AHEAD_S)
            if ahead.grounds.are_there() and not self.claims_nothing:
                self._start(ahead)
        return ahead

    def _wait_until_nearly_done(self, current: InflightMicrobatch, seconds: float) -> None:
        painting = current.painting
        assert painting
        while not painting.done() and not self.claims_nothing and (left := current.seconds_left()) > seconds:
            wait_for([painting], timeout=min(max(left - seconds, 0.002), 0.1))

    def _begin(self, rendering: InflightMicrobatch) -> bool:
        """Make the model resident and start the lease. False when there is nothing to paint: it was given back."""
        microbatch = rendering.microbatch
        try:
            if microbatch.model not in self.gallery.resident and not self.claims_nothing:
                self._load(microbatch.model)
            self._wait_for_grounds(rendering)
        except (RenderFailed, Unavailable) as error:
            return self._give_back(microbatch, error.message)
        if microbatch.suspect:
            self._wait_until_others_landed(microbatch.lease_id)
        if self.claims_nothing:
            return self._give_back(microbatch, "this worker drains")
        self._start(rendering)
        if not rendering.images:
            return self._give_back(microbatch, "none of its images can be started now")
        if rendering.is_full:
            self._wake(microbatch.model)  # one message may stand for a thousand jobs: enough for another worker
        return True

    def _wait_for_grounds(self, rendering: InflightMicrobatch) -> None:
        """Raises Unavailable if they were given up: nobody waits for the images any more, or this worker drains."""
        while not rendering.grounds.wait(0.2):
            if self.claims_nothing:
                raise Interrupted("this worker drains")
        rendering.grounds.check()

    def _wait_until_others_landed(self, lease_id: UUID) -> None:
        """What may kill this process shall find nothing in it that was rendered in vain."""
        while not self.claims_nothing and not self._holdings.wait_until_only(lease_id, 0.2):
            pass

    def _load(self, model: str) -> None:
        """Make a model resident. Raises Interrupted in a drain: nobody can stop a load, but nobody need wait for it."""
        loading = self._brush.load(model)
        while wait_for([loading], timeout=0.2).not_done:
            if self._draining.is_set():
                raise Interrupted("this worker drains")
        loading.result()

    def _start(self, rendering: InflightMicrobatch) -> None:
        """Start the lease, once, and have painted what is wanted of it: nothing while Postgres is away."""
        if rendering.images is not None:
            return
        rendering.images = ()
        microbatch = rendering.microbatch
        try:
            with self._database_outage.noticed(), transaction(self._database) as connection:
                wanted = leases.start(connection, microbatch)
        except Unavailable:
            return
        self._holdings.keep(microbatch.lease_id, wanted)
        rendering.images = tuple(image for image in microbatch.images if image.id in wanted)
        if rendering.images:
            self._brush.paint(rendering, partial(self._check, rendering))

    def _give_back(self, microbatch: Microbatch, reason: str) -> bool:
        self._in_hand.pop(microbatch.lease_id, None)
        self._store.give_back(microbatch, reason)
        return False

    def _check(self, rendering: InflightMicrobatch) -> None:
        """At every step, in the painting thread: raises Interrupted when it is better to stop."""
        if not self._holdings.wanted(rendering.microbatch.lease_id):
            raise Interrupted("nobody wants its images any more")
        if time.monotonic() + rendering.seconds_left() > self._leave_at:
            raise Interrupted("this worker drains and would not finish it in time")

    def _hand_over(self, rendering: InflightMicrobatch) -> None:
        painting = rendering.painting
        assert painting
        while wait_for([painting], timeout=0.1).not_done:
            if time.monotonic() > self._leave_at:  # nobody can stop it in the middle of a step, or need wait for it
                self._give_back(rendering.microbatch, "this worker drains and did not finish it in time")
                return
        try:
            self._store.accept(painting.result())
            self._in_hand.pop(rendering.microbatch.lease_id, None)
        except Interrupted as error:
            self._give_back(rendering.microbatch, error.message)
        except Exception:
            log_event("engine_failed", exc_info=True, **self._store.facts(rendering.microbatch))
            self._give_back(rendering.microbatch, "the engine failed")
