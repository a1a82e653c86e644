"""What batches need of a control worker: their files checked and expanded, the jobs of cancelled ones settled.

One chunk after the other, each in a transaction of its own that another control worker may be the first to commit; so
it can end at any moment, and any other goes on. The statements are those of `common.batches`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from uuid import UUID

from sqlalchemy import Engine as Database

from common import batch_retries, batches, expansion, originals, prompts
from common.batches import Batch, Chunk
from common.catalog import Catalog, Model
from common.db import transaction
from common.errors import Error, Invalid, LicenceNotAccepted, NotFound
from common.expansion import Rows
from common.licences import Acceptances
from common.modes import Find, Original
from common.plan import Planned, Planner, planners
from common.queue import Messages
from common.recipe import Recipe
from common.storage import Storage, upload_key
from common.telemetry import tell
from worker.prompt_file import Line, lines, some

CHUNK_IMAGES = 8000
CHECK_PROMPTS = 5000
SHOWN = 20  # wrong prompts that are named; the others would be wrong for the same reasons
WORK_S = 20.0  # at one batch, then it is the next one's turn; what was read ahead by then is read again
JOBS_PER_MESSAGE = 1000
KNOWN_ORIGINALS = 1000  # most batches that start from pictures start from a few

PlannedLines = dict[int, list[Planned]]  # by the number of the line, its variants


class Expander:
    def __init__(self, database: Database, storage: Storage, messages: Messages, catalog: Catalog) -> None:
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
            models = batch_retries.expand(connection, batch)
        if models:
            self._wake(models)
            tell("batch_expanded", batch=batch.id, jobs=sum(models.values()))
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
            return batches.note_checked(connection, batch, chunk)

    def _expand(self, batch: Batch, chunk: Chunk, rows: Rows) -> bool:
        with transaction(self._database) as connection:
            is_mine = expansion.expand(connection, batch, chunk, rows)
        if is_mine:
            self._wake(rows.models)
            tell("batch_expanded", batch=batch.id, jobs=sum(rows.models.values()), line=chunk.line)
        return is_mine

    def _wake(self, models: Mapping[str, int]) -> None:
        for model, jobs in models.items():
            for _ in range(-(-jobs // JOBS_PER_MESSAGE)):
                self._messages.wake(model)

    def _refuse(self, batch: Batch, why: Error) -> bool:
        with transaction(self._database) as connection:
            batches.refuse(connection, batch, why.code, why.message)
        tell("batch_refused", batch=batch.id, reason=why.message)
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
        variants = planners(batch.plan, self._catalog, self._find(batch))
        size = CHUNK_IMAGES // batch.plan.images_per_prompt if batch.is_checked else CHECK_PROMPTS
        size = max(1, size // len(variants))
        found = lines(blocks, batch.offset, batch.line)
        first, place = list(islice(found, 1)), batch.place
        while first:
            here = [*first, *some(found, size - 1)]
            first = list(islice(found, 1))
            planned, warnings = self._planned(batch, variants, here, place)
            chunk = Chunk(here[-1].end, here[-1].number, not first, len(here), warnings)
            in_turn = chain.from_iterable(planned.values())
            yield chunk, expansion.rows_of(batch, in_turn, place * len(variants)) if batch.is_checked else None
            place += len(here)

    def _find(self, batch: Batch) -> Find:
        @lru_cache(KNOWN_ORIGINALS)
        def find(picture: UUID) -> Original | None:
            with transaction(self._database) as connection:
                return originals.find(connection, batch.tenant_id, picture)

        return find

    def _planned(
        self, batch: Batch, variants: Sequence[Planner], here: Sequence[Line], place: int
    ) -> tuple[PlannedLines, list[str]]:
        """What these lines become, and what to warn of. Raises Invalid, which names the first wrong lines.

        Their tokens are counted when they are checked, once.
        """
        planned, wrong, warnings = PlannedLines(), dict[int, str](), dict[int, str]()
        for at, line in enumerate(here, place):
            try:
                fields = line.fields(batch.upload.format)
                planned[line.number] = [variant.planned(fields, at) for variant in variants]
            except Invalid as error:
                wrong[line.number] = error.message
        if not batch.is_checked:
            for number, recipe, model in self._doubtful(planned):
                try:
                    prompts.check(recipe, model)
                except Invalid as error:
                    wrong.setdefault(number, error.message)
                for warning in prompts.warnings(recipe, model)[:1]:
                    warnings.setdefault(number, f"Line {number}: {warning}")
        if wrong:
            named = [f"Line {number}: {wrong[number]}" for number in sorted(wrong)]
            more = [f"{len(named) - SHOWN} more near them."] if len(named) > SHOWN else []
            raise Invalid(" ".join(named[:SHOWN] + more))
        if not batch.is_checked:
            self._require_licences(batch, planned)
        return planned, [warnings[number] for number in sorted(warnings)]

    def _require_licences(self, batch: Batch, planned: PlannedLines) -> None:
        """Lines may name models of their own. Raises LicenceNotAccepted, which names the first line."""
        first_lines = dict[str, int]()
        for number, variants in planned.items():
            for one in variants:
                first_lines.setdefault(one.base.recipe.model, number)
        for name, number in first_lines.items():
            try:
                self._acceptances.require(batch.tenant_id, [self._catalog.get(name)])
            except LicenceNotAccepted as error:
                raise LicenceNotAccepted(f"Line {number}: {error.message}") from None

    def _doubtful(self, planned: PlannedLines) -> Iterator[tuple[int, Recipe, Model]]:
        """Those of whose prompts there is something to say, with their lines; a line once for each model."""
        alike: dict[tuple[str, str], dict[int, Planned]] = {}
        for number, variants in planned.items():
            for one in variants:
                alike.setdefault((one.base.recipe.model, one.base.recipe.negative_prompt), {})[number] = one
        for (name, negative), ones in alike.items():
            model, numbers = self._catalog.get(name), list(ones)
            for place in prompts.doubtful([one.prompt for one in ones.values()], negative, model):
                yield numbers[place], ones[numbers[place]].recipe, model
