"""The render loop of one device. Each microbatch goes through five stages, once and in this order:

    1. claim       one short transaction takes the best microbatch for this device                  ──► claimed
    2. load        its model and its input images are brought into memory
    3. start       its lease starts, which counts as an attempt; it is queued on the render thread  ──► started
    4. render      on the render thread; just before its end the next one goes through 1 to 3       ──► rendered
    5. hand over   the uploader encodes, stores and publishes its images while the next one renders

The next microbatch is queued on the render thread before the current one ends, so the GPU never waits. `run()` uses the
thread of its caller: Celery's, or the loop's own, which tries at every heartbeat, so that a lost message costs seconds.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from uuid import UUID

from sqlalchemy import Engine as Database

from common import failures
from common.config import Settings
from common.db import new_id, transaction
from common.errors import Interrupted, RenderFailed, Unavailable
from common.log import log_event
from common.queue import leases
from worker.availability import Availability
from worker.models.manager import ModelManager
from worker.quarantine.recovery import Recovery
from worker.render import sentence
from worker.render.claimer import Claimer
from worker.render.drain import Drain
from worker.render.inflight import HeldLeases, InflightMicrobatch, State
from worker.render.input_images import InputImageLoader
from worker.render.render_thread import RenderThread
from worker.render.uploader import Uploader

RUN_S = 30.0  # how long one call of run() goes on
CLAIM_AHEAD_S = 0.3  # before the end of a microbatch: enough for a claim, too little for a better one to come up
START_AHEAD_S = 0.1  # three commits of a slow disk; whatever is started counts as an attempt if this process dies


class RenderLoop:
    def __init__(
        self,
        worker_id: UUID,
        settings: Settings,
        database: Database,
        models: ModelManager,
        inputs: InputImageLoader,
        render_thread: RenderThread,
        held_leases: HeldLeases,
        uploader: Uploader,
        database_availability: Availability,
        wake: Callable[[str], object],  # wakes a worker that serves a model
        may_claim: Callable[[], bool],
        claimer: Claimer,
        drain: Drain,
        recovery: Recovery,
    ) -> None:
        self.is_ready = False  # has a model in memory, or tried to load each
        self._worker_id = worker_id
        self._settings = settings
        self._database = database
        self._models = models
        self._inputs = inputs
        self._render_thread = render_thread
        self._held_leases = held_leases
        self._uploader = uploader
        self._database_availability = database_availability
        self._wake = wake
        self._may_claim = may_claim
        self._claimer = claimer
        self._drain = drain
        self._recovery = recovery
        self._inflight: dict[UUID, InflightMicrobatch] = {}  # claimed, and neither handed over nor released
        self._running = threading.Lock()
        self._own_thread = threading.Thread(target=self._run_at_every_heartbeat, name="idle", daemon=True)

    def run(self, seconds: float = RUN_S) -> bool:
        """Render until nothing waits or the time is up; True if the time was up. One caller at a time, others wait."""
        until = time.monotonic() + seconds
        while not self._running.acquire(timeout=0.2):
            if self._drain.is_stopping:
                return False
        try:
            if not (self._may_claim() and self._recovery.is_over()):
                return False
            until = time.monotonic() + seconds
            current = self._claim(until)
            while current:
                current = self._process(current, until) or self._claim(until)
            return time.monotonic() >= until and not self._drain.is_active
        except Exception as error:
            held = list(self._inflight.values())
            for inflight in held:
                self._fail(inflight, error)
            if not held:  # no image can count it
                self._count_failure()
            return False
        finally:
            self._running.release()

    def _process(self, current: InflightMicrobatch, until: float) -> InflightMicrobatch | None:
        """Take a claimed microbatch through stages 2 to 5. Returns the next one, if it was claimed meanwhile."""
        if not (self._load(current) and self._start(current)):
            return None
        try:
            return self._claim_ahead(current, until)
        finally:
            self._hand_over(current)

    # 1. Claim

    def _claim(self, until: float) -> InflightMicrobatch | None:
        """Claim the best microbatch as soon as there is room for its images. None if there is none until then."""
        while not self._held_leases.wait_for_room(min(0.2, max(until - time.monotonic(), 0))):
            if self._drain.is_active or time.monotonic() >= until:
                return None
        capacity = {model.name: self._render_thread.capacity(model) for model in self._models.available()}
        if not capacity or not self._may_claim() or self._drain.is_active or time.monotonic() >= until:
            return None
        offer = self._claimer.offer(capacity, self._models.resident, self._models.swap_delay_s)
        lease_id = new_id()
        try:
            with self._database_availability.tracked():
                microbatch = self._claimer.claim(offer, lease_id, self._settings.lease_s)
        except Unavailable:
            self._held_leases.defer_release(lease_id)  # the claim may have been committed
            return None
        self._claimer.collect()
        if microbatch is None:
            return None
        if microbatch.unreadable:
            self._uploader.fail(microbatch, next(iter(microbatch.unreadable.values())))
            return self._claim(until)
        self._held_leases.add(microbatch)
        inputs = self._inputs.fetch(
            microbatch, give_up=lambda: self._drain.is_active or not self._held_leases.wanted(lease_id)
        )
        is_full = len(microbatch.images) == capacity[microbatch.model]
        self._inflight[lease_id] = InflightMicrobatch(microbatch, inputs, is_full=is_full)
        log_event("microbatch_claimed", **self._uploader.log_fields(microbatch))
        return self._inflight[lease_id]

    # 2. Load

    def _load(self, inflight: InflightMicrobatch) -> bool:
        """Make the model resident and wait for the input images. False if the microbatch was released instead."""
        if inflight.state is not State.CLAIMED:  # started ahead
            return True
        model = inflight.microbatch.model
        try:
            if model not in self._models.resident and not self._drain.is_active:
                self._drain.wait_for(self._render_thread.load(model))
            while not inflight.inputs.wait(0.2):
                if self._drain.is_active:
                    raise Interrupted(self._drain.reason)
            inflight.inputs.check()
        except (RenderFailed, Unavailable) as error:
            return self._release(inflight, error.message)
        return True

    # 3. Start

    def _start(self, inflight: InflightMicrobatch) -> bool:
        """Start the lease and queue the images on the render thread. False if it was released instead."""
        if inflight.state is State.CLAIMED:
            if inflight.microbatch.suspect:
                self._wait_until_others_are_published(inflight.microbatch.lease_id)
            if self._drain.is_active:
                return self._release(inflight, self._drain.reason)
            self._start_lease(inflight)
            if inflight.images and inflight.is_full:  # one message may stand for a thousand jobs: enough for another
                self._wake(inflight.microbatch.model)
        if not inflight.images:
            return self._release(inflight, sentence("nothing_to_start"))
        return True

    def _wait_until_others_are_published(self, suspect: UUID) -> None:
        """A suspect may kill this process: then nothing else must be lost with it."""
        while not self._drain.is_active and not self._held_leases.wait_until_only(suspect, 0.2):
            pass

    def _start_lease(self, inflight: InflightMicrobatch) -> None:
        """Start the lease and queue those images that are still wanted; none while Postgres is away."""
        wanted: frozenset[UUID] = frozenset()
        with suppress(Unavailable), self._database_availability.tracked(), transaction(self._database) as connection:
            wanted = leases.start(connection, inflight.microbatch)
        self._held_leases.restrict(inflight.microbatch.lease_id, wanted)
        inflight.start(wanted)
        if inflight.images:
            self._render_thread.render(inflight, partial(self._check, inflight))

    # 4. Render

    def _claim_ahead(self, current: InflightMicrobatch, until: float) -> InflightMicrobatch | None:
        """Claim the next microbatch just before the current one ends; start it later still, if its model is resident.

        A suspect is never started ahead, and nothing is started behind one.
        """
        self._wait_until_nearly_rendered(current, CLAIM_AHEAD_S)
        if not self._held_leases.wait_for_room(0):
            return None
        ahead = self._claim(until)
        is_suspect = current.microbatch.suspect or (ahead and ahead.microbatch.suspect)
        if ahead and not is_suspect and ahead.microbatch.model in self._models.resident:
            self._wait_until_nearly_rendered(current, START_AHEAD_S)
            if ahead.inputs.ready() and not self._drain.is_active:
                self._start_lease(ahead)
        return ahead

    def _wait_until_nearly_rendered(self, current: InflightMicrobatch, seconds: float) -> None:
        """Wait until so many seconds before the expected end."""
        while current.state is State.STARTED and not self._drain.is_active:
            left = current.seconds_left() - seconds
            if left <= 0:
                return
            current.wait_until_rendered(min(max(left, 0.002), 0.1))

    def _check(self, current: InflightMicrobatch) -> None:
        """Called on the render thread after every step. Raises Interrupted when it is better to stop."""
        if not self._held_leases.wanted(current.microbatch.lease_id):
            raise Interrupted(sentence("unwanted"))
        if time.monotonic() + current.seconds_left() > self._drain.deadline:
            raise Interrupted(sentence("drain_deadline"))

    # 5. Hand over

    def _hand_over(self, current: InflightMicrobatch) -> None:
        """Wait until it is rendered, and give the images to the uploader; or release it."""
        while not current.wait_until_rendered(0.1):
            if time.monotonic() > self._drain.deadline:  # a step cannot be stopped
                self._release(current, sentence("drain_deadline"))
                return
        try:
            self._uploader.submit(current.rendered())
            self._inflight.pop(current.microbatch.lease_id, None)
        except (RenderFailed, Unavailable) as error:
            self._release(current, error.message)
        except Exception as error:
            self._fail(current, error)

    def _release(self, inflight: InflightMicrobatch, reason: str) -> bool:
        """Release a microbatch in whatever state. Returns False, as the stages do then."""
        self._inflight.pop(inflight.microbatch.lease_id, None)
        self._uploader.release(inflight.microbatch, reason)
        return False

    def _fail(self, inflight: InflightMicrobatch, error: Exception) -> None:
        """After an unforeseen exception: end a microbatch so that its images cannot fail for ever."""
        self._inflight.pop(inflight.microbatch.lease_id, None)
        self._uploader.fail(inflight.microbatch, error)

    # Start, drain and exit

    def start(self) -> None:
        self._own_thread.start()

    def _run_at_every_heartbeat(self) -> None:
        self._preload()
        while not self._drain.is_stopping:
            if not self.run():
                self._drain.wait_for_stop(self._settings.beat_s)
        log_event("worker_draining", worker=self._worker_id)

    def _preload(self) -> None:
        """Load the first model that this worker does not refuse, before the first job comes."""
        for model in self._models.available():
            try:
                self._drain.wait_for(self._render_thread.load(model.name))
                break
            except Interrupted:
                return
            except (RenderFailed, Unavailable):
                continue
            except Exception:
                self._count_failure()
        self.is_ready = True
        if not self._models.available():
            log_event("nothing_to_serve", worker=self._worker_id)

    def _count_failure(self) -> None:
        """Inside the `except` of an unforeseen exception: log it, and count it for an alert."""
        reference = failures.new_reference()
        log_event("render_loop_failed", exc_info=True, worker=self._worker_id, reference=reference)
        with suppress(Exception), transaction(self._database) as connection:  # the log has it
            failures.record(connection, "render", str(self._worker_id), reference)

    def pause(self, paused: bool) -> None:
        """Drain until further notice, or go on."""
        if self._drain.pause(paused) and paused:
            log_event("worker_draining", worker=self._worker_id)

    def drain(self) -> None:
        """Drain for good; called again, release at once what is not finished. Returns at once."""
        if not self._drain.stop():
            self._uploader.stop_uploads()

    def release_queued(self) -> None:
        """Release all but the microbatch that is being rendered, which counts as an attempt: the process exits."""
        self._drain.exit()
        for inflight in list(self._inflight.values()):
            if inflight is not self._render_thread.current:
                self._release(inflight, sentence("exiting"))

    def close(self) -> bool:
        """Drain, and wait until all is published. False if the render thread is still busy at the deadline."""
        if not self._drain.is_stopping:
            self._drain.stop()
        while self._own_thread.is_alive() and time.monotonic() < self._drain.stop_deadline + 1:
            self._own_thread.join(0.1)
        self._uploader.close(max(self._drain.stop_deadline - time.monotonic(), 1))
        self._inputs.close()
        return self._render_thread.close()
