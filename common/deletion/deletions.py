"""What a caller deletes by its id: a job, a batch, an image, a dataset or an upload.

    delete ──► hidden at once, with a tombstone ──► its rows are gone ──► its bytes are gone       control workers

The rows of a job, an image, a dataset or an upload are few: they go at once, and so does every page and count that they
were in. A batch may have a million jobs: it is marked, which hides them too (`common.schema.shown`), and `batches`
deletes them step by step. What still waits is cancelled first. Whoever deletes twice changes nothing the second time.

Every function takes an open connection; the caller commits, and sends to Redis after that. Raises NotFound when the
tenant has no such thing, and never had one that was deleted.
"""

from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts.keys import Caller
from common.batches import lifecycle
from common.datasets.lifecycle import EXPORT_SILENCE_S
from common.deletion import batches, objects, rows, sentence, tombstones
from common.deletion.objects import DeletedObject
from common.deletion.tombstones import Kind
from common.errors import Conflict, NotFound
from common.queue import jobs
from common.schema import shown
from common.sentences import Sentence
from common.storage import dataset_key, upload_key


def delete_job(connection: Connection, caller: Caller, job_id: UUID) -> bool:
    """Delete a job and its images. False when it was deleted before; so of the functions below."""
    named = {"job": job_id, "tenant": caller.tenant_id}
    if connection.execute(jobs.LOCK_JOB, named).first() is None:
        return _was_deleted(connection, caller, job_id, Kind.JOB, sentence("job_unknown", job=job_id))
    jobs.cancel_locked(connection, [job_id])
    tombstones.record(connection, caller, Kind.JOB, job_id)
    _set_left(connection, job_id, rows.delete_jobs(connection, [job_id], job_id))
    return True


def delete_image(connection: Connection, caller: Caller, image_id: UUID) -> UUID | None:
    """Delete an image; the id of its job, which stays. None when it was deleted before."""
    named = {"image": image_id, "tenant": caller.tenant_id}
    job_id = connection.execute(JOB_OF_IMAGE, named).scalar()
    if job_id is None or connection.execute(jobs.LOCK_JOB, {"job": job_id, "tenant": caller.tenant_id}).first() is None:
        _was_deleted(connection, caller, image_id, Kind.IMAGE, sentence("image_unknown", image=image_id))
        return None
    if connection.execute(JOB_OF_IMAGE, named).scalar() is None:  # another call was first
        return None
    jobs.cancel_image(connection, image_id)
    tombstones.record(connection, caller, Kind.IMAGE, image_id)
    _set_left(connection, image_id, rows.delete_images(connection, [image_id], image_id))
    return UUID(str(job_id))


def delete_batch(connection: Connection, caller: Caller, batch_id: UUID) -> bool:
    """Hide a batch, its jobs and their images, and close its lanes for good.

    `lifecycle.cancel_active` must follow in another transaction, as after `lifecycle.close`.
    """
    named = {"batch": batch_id, "tenant": caller.tenant_id}
    batch = connection.execute(LOCK_BATCH, named).first()
    if batch is None:
        return _was_deleted(connection, caller, batch_id, Kind.BATCH, sentence("batch_unknown", batch=batch_id))
    if batch.finished_at is None:
        lifecycle.close(connection, batch_id, caller.tenant_id)
    tombstones.record(connection, caller, Kind.BATCH, batch_id, batches.pictures(connection, batch_id))
    batches.hide(connection, [batch_id])
    return True


def delete_dataset(connection: Connection, caller: Caller, dataset_id: UUID) -> bool:
    """Delete a dataset and all its files. A control worker that writes it loses it, and what it has just written goes
    some seconds later.
    """
    row = connection.execute(DELETE_DATASET, {"dataset": dataset_id, "tenant": caller.tenant_id}).first()
    if row is None:
        return _was_deleted(
            connection, caller, dataset_id, Kind.DATASET, sentence("dataset_unknown", dataset=dataset_id)
        )
    tombstones.record(connection, caller, Kind.DATASET, dataset_id)
    again_after_s = None if row.finished_at else EXPORT_SILENCE_S
    objects.add(connection, [DeletedObject(dataset_key(dataset_id, ""), again_after_s=again_after_s)], dataset_id)
    return True


def delete_upload(connection: Connection, caller: Caller, upload_id: UUID) -> bool:
    """Delete an uploaded file. Raises Conflict while there is a batch of it.

    A job that waits and starts from it fails with `source_gone`.
    """
    upload = connection.execute(LOCK_UPLOAD, {"upload": upload_id, "tenant": caller.tenant_id}).first()
    if upload is None:
        return _was_deleted(connection, caller, upload_id, Kind.UPLOAD, sentence("upload_unknown", upload=upload_id))
    batch_id = connection.execute(BATCH_OF_UPLOAD, {"upload": upload_id}).scalar()
    if batch_id is not None:
        raise Conflict(sentence("upload_in_use", upload=upload_id, batch=batch_id))
    tombstones.record(connection, caller, Kind.UPLOAD, upload_id)
    objects.add(connection, [DeletedObject(upload_key(upload_id, upload.format))], upload_id)
    connection.execute(DELETE_UPLOAD, {"upload": upload_id})
    return True


def _was_deleted(connection: Connection, caller: Caller, subject: UUID, kind: Kind, unknown: Sentence) -> bool:
    """False: this call deletes nothing. Raises NotFound unless an earlier one did."""
    if not tombstones.was_deleted(connection, caller.tenant_id, subject, kind):
        raise NotFound(unknown)
    return False


def _set_left(connection: Connection, tombstone_id: UUID, pictures: int) -> None:
    connection.execute(SET_LEFT, {"id": tombstone_id, "pictures": pictures})


# Find the job of an image of a tenant.
JOB_OF_IMAGE = text(f"""
    SELECT jobs.id FROM images JOIN jobs ON jobs.id = images.job_id
    WHERE images.id = :image AND jobs.tenant_id = :tenant AND {shown()}
""")

# Lock a batch of a tenant.
LOCK_BATCH = text("""
    SELECT finished_at FROM batches WHERE id = :batch AND tenant_id = :tenant AND deleted_at IS NULL FOR NO KEY UPDATE
""")

# Delete a dataset of a tenant.
DELETE_DATASET = text("DELETE FROM datasets WHERE id = :dataset AND tenant_id = :tenant RETURNING finished_at")

# Lock an upload of a tenant.
LOCK_UPLOAD = text("SELECT format FROM uploads WHERE id = :upload AND tenant_id = :tenant FOR UPDATE")

# Find a batch of an upload.
BATCH_OF_UPLOAD = text("SELECT id FROM batches WHERE upload_id = :upload LIMIT 1")

# Delete an upload.
DELETE_UPLOAD = text("DELETE FROM uploads WHERE id = :upload")

# Record how many pictures a deletion has left.
SET_LEFT = text("UPDATE tombstones SET pictures_left = :pictures WHERE id = :id")
