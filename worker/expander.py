"""What batches need of a control worker: their files checked and expanded, the jobs of cancelled ones settled.

One chunk after the other, each in a transaction of its own that another control worker may be the first to commit; so
it can end at any moment, and any other goes on. The statements are those of `common.batches`.
"""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from uuid import UUID

from sqlalchemy import Engine as Database

from common import batches, expansion, originals, prompts
from common.batches import Batch, Chunk
from common.catalog import Catalog, Model
from common.db import transaction
from common.errors import Invalid, NotFound
from common.expansion import Rows
from common.modes import Find, Original
from common.plan import Planned, Planner
from common.queue import Messages
from common.recipe import Recipe
from common.storage import Storage, upload_key
from common.telemetry import tell
from worker.prompt_file import Line, lines

CHUNK_IMAGES = 8000
CHECK_PROMPTS = 5000
SHOWN = 20  # wrong prompts that are named; the others would be wrong for the same reasons
WORK_S = 20.0  # at one batch, then it is the next one's turn; what was read ahead by then is read again
JOBS_PER_MESSAGE = 1000
KNOWN_ORIGINALS = 1000  # most batches that start from pictures start from a few


class Expander:
    def __init__(self, database: Database, storage: Storage, messages: Messages, catalog: Catalog) -> None:
        self._database = database
        self._storage = storage
        self._messages = messages
        self._catalog = catalog

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
        return batch is not None and not batch.is_expanded and self._read_on(batch, until)

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
            return self._refuse(batch, "Its file is not in the image store any more.")
        except Invalid as error:
            return self._refuse(batch, error.message)

    def _check(self, batch: Batch, chunk: Chunk) -> bool:
        with transaction(self._database) as connection:
            return batches.note_checked(connection, batch, chunk)

    def _expand(self, batch: Batch, chunk: Chunk, rows: Rows) -> bool:
        with transaction(self._database) as connection:
            is_mine = expansion.expand(connection, batch, chunk, rows)
        if is_mine:
            for model, jobs in rows.models.items():
                for _ in range(-(-jobs // JOBS_PER_MESSAGE)):
                    self._messages.wake(model)
            tell("batch_expanded", batch=batch.id, jobs=chunk.prompts, line=chunk.line)
        return is_mine

    def _refuse(self, batch: Batch, reason: str) -> bool:
        with transaction(self._database) as connection:
            batches.refuse(connection, batch, Invalid.code, reason)
        tell("batch_refused", batch=batch.id, reason=reason)
        return True

    # From lines to recipes

    @contextmanager
    def _chunks(self, batch: Batch) -> Iterator[Iterator[tuple[Chunk, Rows | None]]]:
        """The chunks from where the batch stands, as rows too if they are to be expanded.

        The next one is made while Postgres works at the last one.
        """
        key = upload_key(batch.upload.id, batch.upload.format)
        with self._storage.open(key, batch.offset) as blocks, ThreadPoolExecutor(1, "read ahead") as ahead:
            chunks = self._made(batch, blocks)

            def in_turn() -> Iterator[tuple[Chunk, Rows | None]]:
                coming = ahead.submit(next, chunks, None)
                while chunk := coming.result():
                    coming = ahead.submit(next, chunks, None)
                    yield chunk

            yield in_turn()

    def _made(self, batch: Batch, blocks: Iterator[bytes]) -> Iterator[tuple[Chunk, Rows | None]]:
        planner = Planner(batch.plan, self._catalog, self._find(batch))
        size = max(1, CHUNK_IMAGES // batch.plan.images_per_prompt) if batch.is_checked else CHECK_PROMPTS
        found = lines(blocks, batch.offset, batch.line)
        first, place = list(islice(found, 1)), batch.jobs
        while first:
            here = [*first, *islice(found, size - 1)]
            first = list(islice(found, 1))
            planned, warnings = self._planned(batch, planner, here, place)
            chunk = Chunk(here[-1].end, here[-1].number, not first, len(here), warnings)
            yield chunk, expansion.rows_of(batch, planned, place) if batch.is_checked else None
            place += len(here)

    def _find(self, batch: Batch) -> Find:
        @lru_cache(KNOWN_ORIGINALS)
        def find(picture: UUID) -> Original | None:
            with transaction(self._database) as connection:
                return originals.find(connection, batch.tenant_id, picture)

        return find

    def _planned(self, batch: Batch, planner: Planner, here: list[Line], place: int) -> tuple[list[Planned], list[str]]:
        """Their tokens are counted when they are checked, once. Raises Invalid, which names the first wrong lines."""
        planned, wrong, warnings = dict[int, Planned](), dict[int, str](), list[str]()
        for at, line in enumerate(here, place):
            try:
                planned[line.number] = planner.planned(line.fields(batch.upload.format), at)
            except Invalid as error:
                wrong[line.number] = error.message
        if not batch.is_checked:
            for number, recipe, model in self._doubtful(planned):
                try:
                    prompts.check(recipe, model)
                except Invalid as error:
                    wrong[number] = error.message
                warnings += (f"Line {number}: {warning}" for warning in prompts.warnings(recipe, model)[:1])
        if wrong:
            named = [f"Line {number}: {wrong[number]}" for number in sorted(wrong)]
            more = [f"{len(named) - SHOWN} more near them."] if len(named) > SHOWN else []
            raise Invalid(" ".join(named[:SHOWN] + more))
        return list(planned.values()), warnings

    def _doubtful(self, planned: Mapping[int, Planned]) -> Iterator[tuple[int, Recipe, Model]]:
        """Those, by their lines, of whose prompts there is something to say."""
        alike: dict[tuple[str, str], list[int]] = {}
        for number, one in planned.items():
            alike.setdefault((one.base.recipe.model, one.base.recipe.negative_prompt), []).append(number)
        found = dict[int, Model]()
        for (name, negative), numbers in alike.items():
            model = self._catalog.get(name)
            places = prompts.doubtful([planned[number].prompt for number in numbers], negative, model)
            found.update((numbers[place], model) for place in places)
        for number in sorted(found):
            yield number, planned[number].recipe, found[number]
