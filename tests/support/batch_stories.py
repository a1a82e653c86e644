"""What the tests of batches share: a story with batches, and a control worker that checks and expands them."""

import io
import json
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from common import uploads
from common.batches import lifecycle as batches
from common.batches import retries
from common.batches.plan import Plan
from common.batches.throughput import StopRule
from common.broker import Broker
from common.config import Settings
from common.db import new_id, transaction
from common.enums import Tier
from common.storage import Storage, sha256, upload_key
from common.uploads import Upload
from tests.support.stories import CATALOG, Story
from worker.control.batch_expander import Expander

PLAN = Plan(defaults={"model": "mini-zh", "steps": 2}, images_per_prompt=2, seed=100)
PROMPTS = [f"红色的圆形 {n}" for n in range(10)]


class BatchStory(Story):
    """A story with a control worker."""

    def __init__(self, story: Story, settings: Settings) -> None:
        super().__init__(story.database)
        self.storage = Storage(settings)
        self.storage.ensure_bucket()
        self.expander = Expander(self.database, self.storage, Broker(settings), CATALOG)

    def upload(self, data: bytes, format: str = "txt", tenant: str = "somebody") -> UUID:
        upload = Upload(new_id(), format, len(data), sha256(data))
        self.storage.put_file(upload_key(upload.id, format), io.BytesIO(data), "text/plain")
        tenant_id = self.tenant(tenant)
        with transaction(self.database) as connection:
            uploads.record(connection, tenant_id, upload)
        return upload.id

    def batch_of(
        self,
        prompts: Iterable[str] = PROMPTS,
        plan: Plan = PLAN,
        tenant: str = "somebody",
        stop_rule: StopRule | None = None,
    ) -> UUID:
        upload, tenant_id = self.upload("\n".join(prompts).encode(), tenant=tenant), self.tenant(tenant)
        with transaction(self.database) as connection:
            return batches.submit(
                connection, tenant_id, upload, plan, tier=Tier.BULK, name="a batch", stop_rule=stop_rule
            )

    def batch_of_lines(self, *rows: Any, plan: Plan = PLAN) -> UUID:
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
        upload, tenant_id = self.upload(text.encode(), "jsonl"), self.tenant()
        with transaction(self.database) as connection:
            return batches.submit(connection, tenant_id, upload, plan)

    def expanded(self, *args: Any, **more: Any) -> UUID:
        batch_id = self.batch_of(*args, **more)
        assert not self.expander.work(batch_id, 60)
        return batch_id

    def pause(self, batch_id: UUID) -> None:
        with transaction(self.database) as connection:
            batches.pause(connection, batch_id, self.tenant())

    def resume(self, batch_id: UUID) -> list[str]:
        with transaction(self.database) as connection:
            return batches.resume(connection, batch_id, self.tenant())

    def close(self, batch_id: UUID) -> None:
        with transaction(self.database) as connection:
            batches.close(connection, batch_id, self.tenant())

    def cancel_batch(self, batch_id: UUID) -> list[UUID]:
        self.close(batch_id)
        with transaction(self.database) as connection:
            return batches.cancel_active(connection, batch_id)

    def retry(self, batch_id: UUID) -> UUID:
        with transaction(self.database) as connection:
            return retries.submit(connection, self.tenant(), batch_id)[0]

    def end(self) -> list[UUID]:
        self.count_ended()
        with transaction(self.database) as connection:
            return batches.end(connection)

    def batch(self, batch_id: UUID) -> Row[Any]:
        return self.rows("SELECT * FROM batches WHERE id = :id", id=batch_id)[0]

    def jobs_of(self, batch_id: UUID) -> list[Row[Any]]:
        return self.rows("SELECT * FROM jobs WHERE batch_id = :id ORDER BY position", id=batch_id)

    def images_of(self, batch_id: UUID) -> list[Row[Any]]:
        statement = "SELECT images.*, position FROM images JOIN jobs ON job_id = jobs.id WHERE batch_id = :id"
        return self.rows(f"{statement} ORDER BY position, index", id=batch_id)

    def lanes_of(self, batch_id: UUID) -> list[Row[Any]]:
        self.count_ended()
        return self.rows("SELECT * FROM lanes WHERE batch_id = :id ORDER BY id", id=batch_id)
