"""Jobs and images as their tenant sees them. Reads only; `common.queue` changes them.

A page is one query, however many jobs it has: the jobs, their images and, for those that wait, how many images are
ahead. The first row that waits has the workers, from which follows why it waits.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, TextClause, text

from api import sentence
from api.queries.fleet import WORKERS_JSON, Fleet
from api.schemas import (
    Image,
    ImageError,
    ImageWithJob,
    Job,
    JobError,
    Progress,
    Recipe,
    Timings,
    Unknown,
    WaitingFor,
)
from common.broker import Broker
from common.enums import TERMINAL_JOB, ImageState, JobState
from common.errors import NotFound, RenderFailed
from common.estimates import sentence as why
from common.estimates.estimate import Estimate, of_waiting_job, unknown
from common.estimates.farm import Farm, recent_farm
from common.estimates.forecast import Waiting
from common.estimates.speed import Kind
from common.queue.claim import WAITING
from common.queue.search import Search, find
from common.schema import columns_of, jobs, shown

MAX_POSITION = 1000  # images ahead are counted up to here
JobVersion = tuple[JobState, int]  # the state of a job, and how many of its images are open
RETRYABLE = {error.code: error.retryable for error in RenderFailed.__subclasses__()}


def find_job(connection: Connection, tenant_id: UUID | None, job_id: UUID, base_url: str) -> Job:
    """Raises NotFound when the tenant has no such job. No tenant: any job, which then names its tenant."""
    filters = f"id = :job AND {shown()}" + (" AND tenant_id = :tenant" if tenant_id else "")
    parameters = {"tenant": tenant_id, "job": job_id, "limit": 1}
    found = _read(connection, base_url, filters, parameters, names_tenant=tenant_id is None)
    if not found:
        raise NotFound(sentence("job_not_found", job=job_id))
    return found[0]


def find_jobs(
    connection: Connection, tenant_id: UUID | None, search: Search, base_url: str
) -> tuple[list[Job], UUID | None]:
    """A page of jobs, newest first, and where to resume a search that ended early: see `common.queue.search`.

    No tenant: jobs of all, each with the name of its tenant.
    """
    found = find(connection, tenant_id, search)
    if not found.ids:
        return [], found.resume
    parameters, names_tenant = {"jobs": list(found.ids), "limit": len(found.ids)}, tenant_id is None
    return _read(connection, base_url, "id = ANY(:jobs)", parameters, search.order, names_tenant), found.resume


def find_image(
    connection: Connection, tenant_id: UUID, image_id: UUID, base_url: str
) -> tuple[ImageWithJob, str | None]:
    """An image, and its key in storage once it is stored. Raises NotFound when the tenant has no such image."""
    row = connection.execute(READ_IMAGE, {"tenant": tenant_id, "image": image_id}).first()
    if row is None:
        raise NotFound(sentence("image_not_found", image=image_id))
    return ImageWithJob(job_id=row.job_id, **_image(row.image, row.recipe, base_url)), row.key


def find_changed(
    connection: Connection, known: Mapping[UUID, JobVersion | None]
) -> dict[UUID, tuple[JobVersion, Job] | None]:
    """Those of these jobs whose version is not the known one, of any tenant; their links have no address yet. None for
    a job that was deleted.
    """
    versions = {row.id: (row.state, row.open) for row in connection.execute(READ_VERSIONS, {"jobs": list(known)})}
    changed = [job_id for job_id, version in versions.items() if version != known[job_id]]
    jobs = _read(connection, "", "id = ANY(:jobs)", {"jobs": changed, "limit": len(changed)}) if changed else []
    deleted = dict.fromkeys(known.keys() - versions.keys())
    return deleted | {job.id: (versions[job.id], job) for job in jobs}


def is_terminal(connection: Connection, tenant_id: UUID, job_id: UUID) -> bool:
    """Raises NotFound when the tenant has no such job."""
    state = connection.execute(READ_STATE, {"tenant": tenant_id, "job": job_id}).scalar()
    if state is None:
        raise NotFound(sentence("job_not_found", job=job_id))
    return state in TERMINAL_JOB


def owner_of(connection: Connection, job_id: UUID) -> UUID:
    """The tenant of a job that there is."""
    return UUID(str(connection.execute(READ_OWNER, {"job": job_id}).scalar_one()))


def with_progress(broker: Broker, found: Iterable[Job]) -> list[Job]:
    """The same jobs; running ones get their progress, if Redis has it. Not for use inside a transaction."""
    jobs = list(found)
    running = {job.id: job for job in jobs if job.state == JobState.RUNNING}
    for job_id, (step, steps) in broker.progress(list(running)).items():
        running[job_id].progress = Progress(step=step, steps=steps)
    return jobs


def _read(
    connection: Connection,
    base_url: str,
    filters: str,
    parameters: Mapping[str, Any],
    order: str = "id",
    names_tenant: bool = False,
) -> list[Job]:
    rows = connection.execute(_statement(filters, order), parameters).all()
    jobs = [_job(row, base_url) for row in rows]
    fleet = Fleet(next((row.fleet for row in rows if row.fleet), None))
    farm = recent_farm(connection) if any(row.waits for row in rows) else None
    for job, row in zip(jobs, rows, strict=True):
        if farm and row.waits:
            _set_waiting(job, row, fleet, farm)
        if names_tenant:
            job.tenant = row.tenant
    return jobs


@lru_cache
def _statement(filters: str, order: str) -> TextClause:
    return text(READ_JOBS.format(filters=filters, order=order))


def _set_waiting(job: Job, row: Row[Any], fleet: Fleet, farm: Farm) -> None:
    backs_off = row.head is None and row.backs_off
    if row.suspended_at:
        job.waiting_for = TENANT_SUSPENDED
    elif row.batch_cancelled_at or row.batch_paused_at:
        job.waiting_for = BATCH_CANCELLED if row.batch_cancelled_at else BATCH_PAUSED
    else:
        job.waiting_for = fleet.waiting_reason(job.recipe.model, is_backing_off=backs_off)
        job.position = None if backs_off else row.ahead
    if job.position is None:
        job.eta_unknown = Unknown(code=job.waiting_for.code, message=job.waiting_for.message)
        return
    found = _estimate(job, row, farm)
    job.eta_seconds, job.eta_seconds_p90, job.eta_unknown = found.seconds, found.seconds_p90, Unknown.of(found)


def _estimate(job: Job, row: Row[Any], farm: Farm) -> Estimate:
    """Of a job that waits. One of which nothing is waiting is held by workers, who have not started it yet."""
    if row.ahead >= MAX_POSITION:
        return unknown(why("too_far", most=MAX_POSITION))
    recipe = job.recipe
    kind = Kind(recipe.model, row.compatibility, float(recipe.steps * recipe.width * recipe.height))
    images, head = row.waiting_images or row.open, row.head or row.id
    waiting = Waiting("new", row.tier, row.tenant_id, kind, images, head, row.weight)
    return of_waiting_job(farm, waiting, row.lane_id, row.ahead_in_lane, is_held=row.head is None)


def _job(row: Row[Any], base_url: str) -> Job:
    images: list[dict[str, Any]] = row.images
    rendered = [
        image for image in images if image["worker"] and image["started_at"]
    ]  # one that was cancelled before it started has no worker
    return Job(
        id=row.id,
        state=row.state,
        tier=row.tier,
        batch_id=row.batch_id,
        parent_id=row.parent_id,
        recipe=Recipe.model_validate(row.recipe, extra="allow"),
        images=[Image(**_image(image, row.recipe, base_url)) for image in images],
        warnings=row.warnings,
        error=_job_error(row),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        timings=Timings(
            wait_s=(row.started_at - row.created_at).total_seconds() if row.started_at else None,
            render_s=_seconds(image["render_ms"] for image in images if not image["reused"]),
            store_s=_seconds(image["store_ms"] for image in images),
        ),
        **{name: (row.origin or {}).get(name) for name in ORIGIN},
        worker=max(rendered, key=lambda image: image["started_at"])["worker"] if rendered else None,
    )


def _image(image: Mapping[str, Any], recipe: Mapping[str, Any], base_url: str) -> dict[str, Any]:
    is_stored = image["state"] == ImageState.STORED and image["picture_deleted_at"] is None
    shows_error = image["state"] in (ImageState.STORED, ImageState.FAILED, ImageState.FLAGGED)
    code = image["error_code"] if shows_error else None
    return {
        "id": image["id"],
        "index": image["index"],
        "state": image["state"],
        "attempts": image["attempts"],
        "seed": recipe["seeds"][image["index"]],
        "width": recipe["width"],
        "height": recipe["height"],
        "format": recipe["format"],
        "bytes": image["bytes"],
        "sha256": image["sha256"],
        "url": f"{base_url}v1/images/{image['id']}/content" if is_stored else None,
        "error": ImageError(code=code, message=image["error_message"] or "") if code else None,
        "picture_deleted_at": image["picture_deleted_at"],
        "reused": image["reused"],
    }


def _job_error(row: Row[Any]) -> JobError | None:
    if row.state != JobState.FAILED or row.error_code is None:
        return None
    return JobError(code=row.error_code, message=row.error_message or "", retryable=RETRYABLE.get(row.error_code, True))


def _seconds(milliseconds: Iterable[int | None]) -> float | None:
    known = [value for value in milliseconds if value is not None]
    return sum(known) / 1000 if known else None


ORIGIN = ("row", "meta", "template_vars")
BATCH_PAUSED = WaitingFor(code="batch_paused", message=sentence("batch_paused"))
TENANT_SUSPENDED = WaitingFor(code="tenant_suspended", message=sentence("tenant_suspended"))
BATCH_CANCELLED = WaitingFor(code="batch_cancelled", message=sentence("batch_cancelled"))

# An image as JSON.
IMAGE_JSON = """json_build_object(
    'id', images.id, 'index', images.index, 'state', images.state, 'attempts', images.attempts, 'bytes', images.bytes,
    'sha256', images.sha256, 'error_code', images.error_code, 'error_message', images.error_message,
    'render_ms', images.render_ms, 'store_ms', images.store_ms, 'started_at', images.started_at,
    'worker', workers.name, 'picture_deleted_at', images.picture_deleted_at, 'reused', images.reused)"""

# The worker of an image. None for one that is claimed but not started, since its lease may still release it.
WORKER = """
    LEFT JOIN leases ON leases.id = images.lease_id AND images.state <> 'queued'
    LEFT JOIN workers ON workers.id = leases.worker_id"""

# Counts the images ahead of a job: of its model, those in higher tiers and older ones in its own, and how many of them
# are in its lane. Ignores fair share.
AHEAD = f"""
    SELECT count(*) AS ahead, count(*) FILTER (WHERE is_own_lane) AS ahead_in_lane FROM (
        SELECT lanes.id = mine.id AS is_own_lane FROM lanes AS mine
        JOIN lanes ON lanes.model = mine.model AND lanes.tier <= mine.tier AND lanes.open > 0
            AND NOT lanes.closed
        JOIN tenants ON tenants.id = lanes.tenant_id AND tenants.suspended_at IS NULL
        CROSS JOIN LATERAL (
            SELECT FROM images WHERE images.lane_id = lanes.id AND {WAITING}
                AND images.id < CASE WHEN lanes.tier < mine.tier THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid
                                     ELSE own.head END
            ORDER BY images.id LIMIT {MAX_POSITION}) AS image
        WHERE mine.id = own.lane_id LIMIT {MAX_POSITION}) AS images_ahead"""

# A page of jobs in one snapshot, so that a job and its images never contradict each other.
READ_JOBS = f"""
    SELECT {columns_of(jobs, "page")}, own.*, place.ahead, place.ahead_in_lane, tenants.weight,
           CASE WHEN own.waits THEN (SELECT compatibility FROM lanes WHERE lanes.id = own.lane_id) END AS compatibility,
           batches.paused_at AS batch_paused_at, batches.cancelled_at AS batch_cancelled_at,
           tenants.name AS tenant, tenants.suspended_at,
           CASE WHEN own.waits AND row_number() OVER (PARTITION BY own.waits) = 1 THEN ({WORKERS_JSON}) END AS fleet
    FROM (
        SELECT * FROM jobs WHERE {{filters}} ORDER BY {{order}} DESC LIMIT :limit) AS page
    CROSS JOIN LATERAL (
        SELECT coalesce(json_agg({IMAGE_JSON} ORDER BY images.index), '[]') AS images,
               coalesce(min(images.lane_id) FILTER (WHERE {WAITING}), min(images.lane_id)) AS lane_id,
               page.finished_at IS NULL AND NOT bool_or(images.state = 'running') AS waits,
               bool_or(images.not_before IS NOT NULL) AS backs_off,
               count(*) FILTER (WHERE {WAITING}) AS waiting_images,
               (array_agg(images.id ORDER BY images.id) FILTER (WHERE {WAITING}))[1] AS head
        FROM images {WORKER} WHERE images.job_id = page.id) AS own
    LEFT JOIN LATERAL ({AHEAD}) AS place ON own.waits
    LEFT JOIN batches ON batches.id = page.batch_id
    JOIN tenants ON tenants.id = page.tenant_id
    ORDER BY page.{{order}} DESC
"""

# One image of a tenant, and its job's recipe.
READ_IMAGE = text(f"""
    SELECT jobs.id AS job_id, jobs.recipe, images.key, {IMAGE_JSON} AS image
    FROM images JOIN jobs ON jobs.id = images.job_id {WORKER}
    WHERE images.id = :image AND jobs.tenant_id = :tenant AND {shown()}
""")

# The versions of jobs.
READ_VERSIONS = text(f"SELECT id, state, open FROM jobs WHERE id = ANY(:jobs) AND {shown()}")

# The tenant of a job.
READ_OWNER = text("SELECT tenant_id FROM jobs WHERE id = :job")

# The state of a job of a tenant.
READ_STATE = text(f"SELECT state FROM jobs WHERE id = :job AND tenant_id = :tenant AND {shown()}")
