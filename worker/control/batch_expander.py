"""What batches need of a control worker: their files checked and expanded, the jobs of cancelled ones settled.

One chunk after the other, each in a transaction of its own that another control worker may be the first to commit; so
it can end at any moment, and any other goes on. The statements are those of `common.batches.lifecycle`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from uuid import UUID

from sqlalchemy import Engine as Database

from common import originals
from common.accounts.licences import Acceptances
from common.batches import check, expansion, retries, skipped_lines
from common.batches import lifecycle as batches
from common.batches.check import CheckedLines
from common.batches.expansion import JobRows
from common.batches.lifecycle import Batch, Chunk
from common.batches.plan import planners
from common.broker import Broker
from common.catalog.catalog import Catalog
from common.db import transaction
from common.errors import Error, Invalid, LicenceNotAccepted, NotFound
from common.log import log_event
from common.prompt_files.lines import Line, at_line, take
from common.prompt_files.reader import open_prompts
from common.recipes.img2img import FindImage, InputImage
from common.storage import Storage

CHUNK_IMAGES = 8000
CHECK_PROMPTS = 5000
WORK_S = 20.0  # at one batch, then it is the next one's turn; what was read ahead by then is read again
JOBS_PER_MESSAGE = 1000
MOST_SKIPPED = 100_000  # wrong prompts; where there are more, something else is wrong with the file
KNOWN_ORIGINALS = 1000  # most batches that start from pictures start from a few


class Expander:
    def __init__(self, database: Database, storage: Storage, messages: Broker, catalog: Catalog) -> None:
        self._database = database
        self._storage = storage
        self._messages = messages
        self._catalog = catalog
        self._acceptances = Acceptances(database)

    def work(self, batch_id: UUID, seconds: float = WORK_S) -> bool:
        """Do what the batch needs next for so long; True when there is more to do.

        Raises Unavailable when Postgres or the image store is away: nothing is lost, the sweep comes back to it.
        """
        until = time.monotonic() + seconds
        while self._go_on(batch_id, until):
            if time.monotonic() > until:
                return True
        return False

    def _go_on(self, batch_id: UUID, until: float) -> bool:
        """One step, or as many as the time allows; False when there is nothing more to do here."""
        with transaction(self._database) as connection:
            batch = batches.read(connection, batch_id)
        if batch and batch.is_cancelled:
            with transaction(self._database) as connection:
                return batches.settle(connection, batch_id)
        if batch is None or batch.is_expanded:
            return False
        return self._draw_again(batch) if batch.parent_id else self._read_on(batch, until)

    def _draw_again(self, batch: Batch) -> bool:
        """Make the next jobs of a retry; False when somebody else is at it."""
        with transaction(self._database) as connection:
            models = retries.expand(connection, batch)
        if models:
            self._wake(models)
            log_event("batch_expanded", batch=batch.id, jobs=sum(models.values()))
        return models is not None

    def _read_on(self, batch: Batch, until: float) -> bool:
        """Check or expand chunk after chunk while the time lasts; False when somebody else is at it, or it is over."""
        try:
            with self._chunks(batch) as chunks:
                for chunk, rows in chunks:
                    is_mine = self._expand(batch, chunk, rows) if rows else self._check(batch, chunk)
                    if not is_mine:
                        return False
                    if chunk.is_last or time.monotonic() > until:
                        return True
                    batch = batch.after(chunk)
            raise Invalid("Its file has no prompts.")
        except NotFound:
            return self._refuse(batch, Invalid("Its file is not in the image store any more."))
        except (Invalid, LicenceNotAccepted) as error:
            return self._refuse(batch, error)

    def _check(self, batch: Batch, chunk: Chunk) -> bool:
        with transaction(self._database) as connection:
            return batches.record_checked(connection, batch, chunk)

    def _expand(self, batch: Batch, chunk: Chunk, rows: JobRows) -> bool:
        with transaction(self._database) as connection:
            is_mine = expansion.expand(connection, batch, chunk, rows)
        if is_mine:
            self._wake(rows.models)
            log_event("batch_expanded", batch=batch.id, jobs=sum(rows.models.values()), line=chunk.line)
        return is_mine

    def _wake(self, models: Mapping[str, int]) -> None:
        for model, jobs in models.items():
            for _ in range(-(-jobs // JOBS_PER_MESSAGE)):
                self._messages.wake(model)

    def _refuse(self, batch: Batch, why: Error) -> bool:
        with transaction(self._database) as connection:
            batches.refuse(connection, batch, why.code, why.message)
        log_event("batch_refused", batch=batch.id, reason=why.message)
        return True

    # From lines to recipes

    @contextmanager
    def _chunks(self, batch: Batch) -> Iterator[Iterator[tuple[Chunk, JobRows | None]]]:
        """The chunks from where the batch stands, as rows too if they are to be expanded.

        The next one is made while Postgres works at the last one.
        """
        with (
            open_prompts(self._storage, batch.upload, batch.offset, batch.line) as file,
            ThreadPoolExecutor(1, "read ahead") as ahead,
        ):
            chunks = self._made(batch, file.lines)

            def in_turn() -> Iterator[tuple[Chunk, JobRows | None]]:
                coming = ahead.submit(next, chunks, None)
                while chunk := coming.result():
                    coming = ahead.submit(next, chunks, None)
                    yield chunk

            yield in_turn()

    def _made(self, batch: Batch, found: Iterator[Line]) -> Iterator[tuple[Chunk, JobRows | None]]:
        variants = planners(batch.plan, self._catalog, self._find(batch))
        size = CHUNK_IMAGES // batch.plan.images_per_prompt if batch.is_checked else CHECK_PROMPTS
        size = max(1, size // len(variants))
        first, place, skipped = list(islice(found, 1)), batch.place, batch.skipped
        while first:
            here = [*first, *take(found, size - 1)]
            first = list(islice(found, 1))
            if batch.is_checked:
                lines = check.plan_lines(self._wanted(batch, here), variants, place)
                self._refuse_wrong(batch, lines)
            else:
                lines = check.check_lines(here, variants, place, self._catalog)
                skipped += len(lines.wrong)
                if not batch.plan.skip_bad:
                    self._refuse_wrong(batch, lines)
                elif skipped > MOST_SKIPPED:
                    self._refuse_wrong(batch, lines, f"More than {MOST_SKIPPED:,} of its lines are wrong. ")
                elif not (first or place or lines.planned):
                    self._refuse_wrong(batch, lines, "None of its lines is right. ")
                self._require_licences(batch, lines)
            yield self._chunk(batch, here, lines, is_last=not first), self._rows(batch, lines, place)
            place += len(lines.planned)

    def _chunk(self, batch: Batch, here: list[Line], lines: CheckedLines, *, is_last: bool) -> Chunk:
        last, format = here[-1], batch.upload.format
        warnings = [at_line(format, number, warning) for number, warning in lines.warnings.items()]
        return Chunk(last.end, last.last, is_last, len(lines.planned), warnings, lines.wrong)

    def _rows(self, batch: Batch, lines: CheckedLines, place: int) -> JobRows | None:
        return expansion.build_rows(batch, lines.in_turn, place * batch.variants) if batch.is_checked else None

    def _find(self, batch: Batch) -> FindImage:
        @lru_cache(KNOWN_ORIGINALS)
        def find(picture: UUID) -> InputImage | None:
            with transaction(self._database) as connection:
                return originals.find_image(connection, batch.tenant_id, picture)

        return find

    def _wanted(self, batch: Batch, here: list[Line]) -> Iterable[Line]:
        """Without those that were skipped when they were checked. Their tokens are counted then, once."""
        if not batch.skipped:
            return here
        with transaction(self._database) as connection:
            skipped = skipped_lines.lines(connection, batch.id, here[0].number, here[-1].number)
        return [line for line in here if line.number not in skipped]

    def _refuse_wrong(self, batch: Batch, lines: CheckedLines, how_many: str = "") -> None:
        if lines.wrong:
            raise Invalid(how_many + check.list_errors(lines.wrong, batch.upload.format))

    def _require_licences(self, batch: Batch, lines: CheckedLines) -> None:
        """Lines may name models of their own. Raises LicenceNotAccepted, which names the first line."""
        for name, number in lines.first_lines.items():
            try:
                self._acceptances.require(batch.tenant_id, [self._catalog.get(name)])
            except LicenceNotAccepted as error:
                raise LicenceNotAccepted(at_line(batch.upload.format, number, error.message)) from None
