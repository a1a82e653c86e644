"""The work of a control worker on batches: check and expand their files, expand retries, settle cancelled batches.

Works chunk after chunk, each in its own transaction. When two control workers process a chunk, the first commit counts
and the other changes nothing; so a process can end at any moment and another one continues. A chunk is recorded about
twice a second, even if nothing of the file came in between: nothing is recorded of a batch that was cancelled, and so
its work ends. The statements are in `common.batches`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from threading import Event
from uuid import UUID

from sqlalchemy import Engine as Database

from common import uploads
from common.accounts.admission import UNLIMITED
from common.accounts.licences import Acceptances
from common.accounts.limits import Limits
from common.batches import check, expansion, retries, skipped_lines
from common.batches import failures as batch_failures
from common.batches import lifecycle as batches
from common.batches.check import CheckedLines
from common.batches.chunks import Batch, Chunk, read_batch, record_checked
from common.batches.expansion import JobRows
from common.batches.plan import Planner, planners
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.catalog.loras import digests
from common.db import transaction
from common.errors import Error, Invalid, LicenceNotAccepted, LimitReached, NotFound, Unavailable
from common.failures import BACKOFF_S, new_reference
from common.log import log_event
from common.policy.policy import NO_POLICY, Policy
from common.prompt_files.columns import Columns
from common.prompt_files.lines import Gap, Line, Step, at_line, steps
from common.prompt_files.reader import open_prompts
from common.recipes import judged
from common.recipes.img2img import FindImage, InputImage
from common.recipes.origin import Kinds, join_kinds
from common.sentences import Sentence
from common.storage import Storage
from worker.control import sentence
from worker.control.batch_turns import BatchTurns
from worker.control.chunk_parts import ChunkParts

CHUNK_IMAGES = 8000
CHECK_PROMPTS = 5000
STEP_PROMPTS = 500
STILL_S = 60.0  # without a line of the file, before it is refused
WORK_S = 20.0  # on one batch before the next one; a chunk that was only read ahead is read again
JOBS_PER_MESSAGE = 1000
MAX_SKIPPED = 100_000  # wrong lines; a file with more is not a file of prompts
CACHED_INPUT_IMAGES = 1000  # most batches that start from images start from a few


class Expander:
    def __init__(
        self,
        database: Database,
        storage: Storage,
        broker: Broker,
        catalog: Catalog,
        policy: Policy = NO_POLICY,
        *,
        backoff_s: float = BACKOFF_S,
        limits: Limits = UNLIMITED,
    ) -> None:
        """`backoff_s`: after the first unforeseen failure of a batch. `limits`: of tenants without own ones."""
        self._database = database
        self._storage = storage
        self._broker = broker
        self._catalog = catalog
        self._policy = policy
        self._backoff_s = backoff_s
        self._limits = limits
        self._acceptances = Acceptances(database)
        self._turns = BatchTurns(database)
        self._leaving = Event()

    def leave(self) -> None:
        """Let `work` return within a second or so: this process is asked to end."""
        self._leaving.set()

    def choose(self, batch_id: UUID) -> UUID | None:
        """The batch whose turn it is, on a message for this one. None if there is no work. `work` ends the turn."""
        return self._turns.take(batch_id)

    def work(self, batch_id: UUID, seconds: float = WORK_S) -> bool:
        """Do what the batch needs next for so long, less while another tenant waits. True when more is left to do.

        Raises Unavailable when Postgres or the image store is away. What fails for another reason is counted, and ends
        the batch after some tries. The sweep starts again what is unfinished.
        """
        try:
            is_over = self._turns.clock(batch_id, seconds)
            while self._step(batch_id, is_over):
                if is_over() or self._leaving.is_set():
                    return True
        except Unavailable:
            raise
        except Exception:
            self._count_failure(batch_id)
        finally:
            self._turns.end(batch_id, self._leaving.is_set)
        return False

    def _count_failure(self, batch_id: UUID) -> None:
        reference = new_reference()
        log_event("advance_failed", exc_info=True, batch=batch_id, reference=reference)
        with transaction(self._database) as connection:
            has_ended = batch_failures.count_failure(connection, batch_id, reference, self._backoff_s)
        if has_ended:
            log_event("batch_given_up", batch=batch_id, reference=reference)

    def _step(self, batch_id: UUID, is_over: Callable[[], bool]) -> bool:
        """Settle, expand a retry, or process chunks. False when nothing is left to do for this process."""
        with transaction(self._database) as connection:
            batch = read_batch(connection, batch_id)
        if batch and batch.is_cancelled:
            with transaction(self._database) as connection:
                return batches.settle(connection, batch_id)
        if batch is None or batch.is_expanded:
            return False
        return self._expand_retry(batch) if batch.parent_id else self._process_chunks(batch, is_over)

    def _expand_retry(self, batch: Batch) -> bool:
        """Insert the next jobs of a retry. False when another process does it."""
        with transaction(self._database) as connection:
            limits = self._limits.with_own(batch.own_limits)
            refusal = partial(judged.refusal_of_stored, catalog=self._catalog, policy=self._policy)
            models = retries.expand(connection, batch, limits, refusal if self._policy.rules else None)
        if models:
            self._wake(models)
            log_event("batch_expanded", batch=batch.id, jobs=sum(models.values()))
        return models is not None

    def _process_chunks(self, batch: Batch, is_over: Callable[[], bool]) -> bool:
        """Check or expand chunk after chunk until its turn is over, and one in any case. False when another process
        does it, or the batch was cancelled.
        """
        began_at, still_until = batch.offset, time.monotonic() + STILL_S
        try:
            with self._chunks(batch) as chunks:
                for chunk, rows in chunks:
                    is_first = self._expand(batch, chunk, rows) if rows else self._check(batch, chunk)
                    if not is_first:
                        return False
                    if chunk.is_last or (chunk.offset > began_at and is_over()):
                        return True
                    if chunk.offset > batch.offset:
                        still_until = time.monotonic() + STILL_S
                    elif time.monotonic() > still_until:
                        reason = sentence("file_still", seconds=STILL_S)
                        raise Invalid(at_line(batch.upload.format, chunk.line + 1, reason))
                    batch = batch.after(chunk)
            return True  # this process is asked to end
        except NotFound:
            return self._refuse(batch, Invalid(sentence("file_missing")))
        except (Invalid, LicenceNotAccepted, LimitReached) as error:
            return self._refuse(batch, error)

    def _check(self, batch: Batch, chunk: Chunk) -> bool:
        with transaction(self._database) as connection:
            return record_checked(connection, batch, chunk, self._limits.with_own(batch.own_limits))

    def _expand(self, batch: Batch, chunk: Chunk, rows: JobRows) -> bool:
        with transaction(self._database) as connection:
            limits = self._limits.with_own(batch.own_limits)
            linked = expansion.expand(connection, batch, chunk, rows, limits, digests(self._catalog.loras))
        if linked and rows.models:
            self._wake(rows.models)
            self._broker.announce_changed(linked.ended_jobs)
            jobs = sum(rows.models.values())
            log_event("batch_expanded", batch=batch.id, jobs=jobs, line=chunk.line, reused=linked.images or None)
        return linked is not None

    def _wake(self, models: Mapping[str, int]) -> None:
        for model, jobs in models.items():
            for _ in range(-(-jobs // JOBS_PER_MESSAGE)):
                self._broker.wake(model)

    def _refuse(self, batch: Batch, why: Error) -> bool:
        with transaction(self._database) as connection:
            batch_failures.refuse(connection, batch, why.code, why.message)
        log_event("batch_refused", batch=batch.id, reason=why.message)
        return True

    # From lines to recipes

    @contextmanager
    def _chunks(self, batch: Batch) -> Iterator[Iterator[tuple[Chunk, JobRows | None]]]:
        """The chunks from the batch's offset on, with their rows once the batch is checked.

        A thread prepares the next chunk while the caller writes the current one to Postgres.
        """
        stopping, columns = Event(), batch.plan.columns_of_file()
        with (
            open_prompts(self._storage, batch.upload, columns, batch.offset, batch.line) as file,
            ThreadPoolExecutor(1, "read ahead") as pool,
        ):
            chunks = self._make_chunks(batch, file.lines, columns, stopping)

            def read_ahead() -> Iterator[tuple[Chunk, JobRows | None]]:
                pending = pool.submit(next, chunks, None)
                while chunk := pending.result():
                    pending = pool.submit(next, chunks, None)
                    yield chunk

            try:
                yield read_ahead()
            finally:
                stopping.set()

    def _make_chunks(
        self, batch: Batch, found: Iterator[Line | Gap], columns: Columns, stopping: Event
    ) -> Iterator[tuple[Chunk, JobRows | None]]:
        variants = planners(batch.plan, self._catalog, self._find(batch))
        images = CHUNK_IMAGES // batch.plan.images_per_prompt if batch.is_checked else CHECK_PROMPTS
        most = max(1, images // len(variants))
        position, skipped, kinds, parts = batch.position, batch.skipped, batch.kinds, ChunkParts()
        left_out = self._left_out(batch)
        at_once = 1 if batch.plan.template else STEP_PROMPTS // len(variants)  # a template may make many prompts
        for step in steps(found, min(most, max(1, at_once))):
            if stopping.is_set() or self._leaving.is_set():
                return
            here = [line for line in step.lines if line.number not in left_out] if left_out else step.lines
            checked = self._check_step(batch, here, variants, position + parts.planned, columns)
            parts.add(step, checked, len(variants))
            if not (step.is_last or parts.prompts >= most or parts.is_full):
                continue
            lines = check.join(parts.checked)
            if batch.is_checked:
                self._refuse_wrong(batch, lines)
            else:
                skipped, kinds = skipped + len(lines.errors), join_kinds(kinds, lines.kinds)
                self._refuse_if_too_wrong(batch, lines, skipped, is_all=step.is_last and not position)
                self._require_licences(batch, lines)
            yield self._chunk(batch, step, lines, kinds), self._rows(batch, lines, position)
            position, parts = position + lines.count_prompts(len(variants)), ChunkParts()

    def _check_step(
        self, batch: Batch, here: list[Line], variants: list[Planner], position: int, columns: Columns
    ) -> CheckedLines:
        if batch.is_checked:
            return check.plan_lines(here, variants, position, columns)  # tokens are counted by the check only
        return check.check_lines(here, variants, position, columns, self._catalog, self._policy)

    def _chunk(self, batch: Batch, step: Step, lines: CheckedLines, kinds: Kinds) -> Chunk:
        format = batch.upload.format
        warnings = [at_line(format, number, warning) for number, warning in lines.warnings.items()]
        code = max((code for _, _, code in {job.template.lane for job in lines.jobs}), default=1)
        images, prompts = sum(len(job.seeds) for job in lines.jobs), lines.count_prompts(batch.variants)
        return Chunk(step.end, step.last, step.is_last, prompts, warnings, lines.errors, code, images, kinds)

    def _rows(self, batch: Batch, lines: CheckedLines, position: int) -> JobRows | None:
        return expansion.build_rows(batch, lines.jobs, position * batch.variants) if batch.is_checked else None

    def _find(self, batch: Batch) -> FindImage:
        @lru_cache(CACHED_INPUT_IMAGES)
        def find(upload_id: UUID) -> InputImage | None:
            with transaction(self._database) as connection:
                return uploads.find_image(connection, batch.tenant_id, upload_id)

        return find

    def _left_out(self, batch: Batch) -> set[int]:
        """The lines that the check skipped; while it goes on, all of them are behind it."""
        with transaction(self._database) as connection:
            return skipped_lines.lines(connection, batch.id)

    def _skipped(self, batch: Batch) -> dict[int, str]:
        with transaction(self._database) as connection:
            return {row["line"]: row["reason"] for row in skipped_lines.head(connection, batch.id, check.MAX_SHOWN)}

    def _refuse_if_too_wrong(self, batch: Batch, lines: CheckedLines, skipped: int, *, is_all: bool) -> None:
        """Raise Invalid when lines are wrong and may not be skipped. `is_all`: the others are wrong."""
        is_none_right = is_all and not lines.planned
        if is_none_right and not skipped:
            raise Invalid(sentence("file_empty"))
        if not batch.plan.skip_bad:
            self._refuse_wrong(batch, lines)
        elif lines.errors and skipped > MAX_SKIPPED:
            raise Invalid(sentence("too_many_lines_wrong", limit=MAX_SKIPPED, lines=self._wrong_lines(batch, lines)))
        elif is_none_right:
            errors = lines.errors or self._skipped(batch)
            raise Invalid(sentence("no_line_right", lines=check.list_errors(errors, batch.upload.format)))

    def _refuse_wrong(self, batch: Batch, lines: CheckedLines) -> None:
        if lines.errors:
            raise Invalid(self._wrong_lines(batch, lines))

    def _wrong_lines(self, batch: Batch, lines: CheckedLines) -> Sentence:
        return check.list_errors(lines.errors, batch.upload.format)

    def _require_licences(self, batch: Batch, lines: CheckedLines) -> None:
        """Lines may name models. Raises LicenceNotAccepted, with the first line that names the model."""
        for name, number in lines.first_lines.items():
            try:
                self._acceptances.require(batch.tenant_id, [self._catalog.get(name)])
            except LicenceNotAccepted as error:
                raise LicenceNotAccepted(at_line(batch.upload.format, number, error.message)) from None
