"""Reuse: an image gets the stored picture of its tenant that is the same, in place of being rendered.

    queued ──► stored      of the same key and class, in the transaction that inserts the image; else it waits as usual

Both images name one object then, so bytes are deleted only once no stored image names them (`named`). `reuse_key` holds
tenant, key and class in one value: what another tenant or class has is never even read. A picture is found through the
index of those that can be reused, whatever else is stored. What would render an image now is what live workers report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from common.queue.jobs import SETTLE
from common.recipes.picture_key import DrawnWith
from common.recipes.recipe import Recipe
from common.schema import shown
from common.storage import owner_of_image

Renderers = Mapping[str, Sequence[DrawnWith]]  # by model


@dataclass(frozen=True)
class Candidate:
    """An image that was just inserted, and a picture that would do for it."""

    image_id: UUID
    picture_key: str
    picture_class: str


@dataclass(frozen=True)
class Linked:
    """How many images got a picture, and the jobs that ended so."""

    images: int
    ended_jobs: tuple[UUID, ...] = ()


def renderers(connection: Connection, models: Iterable[str], loras: Mapping[str, str]) -> Renderers:
    """With what the workers that serve these models would draw now. `loras`: the sha256 of all, by name."""
    found: dict[str, tuple[DrawnWith, ...]] = {}
    for row in connection.execute(RENDERERS, {"models": list(models)}):
        found[row.model] = (*found.get(row.model, ()), DrawnWith(row.weights, loras, row.picture_class))
    return found


def candidates(image_ids: Sequence[UUID], recipe: Recipe, drawn_with: Iterable[DrawnWith]) -> list[Candidate]:
    """Those of the images of a job."""
    return [
        Candidate(image_id, key, one.picture_class)
        for one in drawn_with
        for image_id, key in zip(image_ids, one.keys(recipe), strict=True)
    ]


def link(connection: Connection, tenant_id: UUID, candidates: Sequence[Candidate]) -> Linked:
    """Give the queued images of this tenant the pictures that it has stored. The caller has just inserted them.

    The images whose pictures these are stay until the COMMIT; one that is being deleted is not found.
    """
    if not candidates:
        return Linked(0)
    parameters = {
        "tenant": tenant_id,
        "images": [candidate.image_id for candidate in candidates],
        "keys": [candidate.picture_key for candidate in candidates],
        "classes": [candidate.picture_class for candidate in candidates],
    }
    row = connection.execute(LINK, parameters).one()
    return Linked(row.images, tuple(row.ended_jobs or ()))


def link_job(connection: Connection, tenant_id: UUID, job_id: UUID, recipe: Recipe, loras: Mapping[str, str]) -> Linked:
    """The same for all images of a job that was just inserted."""
    drawn_with = renderers(connection, [recipe.model], loras).get(recipe.model, ())
    image_ids = connection.execute(IMAGES, {"job": job_id}).scalars().all()
    return link(connection, tenant_id, candidates(image_ids, recipe, drawn_with))


def named(connection: Connection, keys: Iterable[str]) -> set[str]:
    """Those of these objects that a stored image names."""
    owners = [(key, owner) for key in keys if (owner := owner_of_image(key))]
    parameters = {
        "keys": [key for key, _ in owners],
        "jobs": [job_id for _, (job_id, _) in owners],
        "indexes": [index for _, (_, index) in owners],
    }
    return set(connection.execute(NAMED, parameters).scalars()) if owners else set()


def reuse_key(tenant: str, picture_key: str, picture_class: str) -> str:
    """SQL of the `reuse_key` of these three, of which the latter two are hexadecimal texts."""
    return f"cast(md5(cast({tenant} AS text) || {picture_key} || {picture_class}) AS uuid)"


# Finds what the live workers that serve models would draw with.
RENDERERS = text("""
    SELECT DISTINCT model.key AS model, model.value ->> 'weights' AS weights, model.value ->> 'class' AS picture_class
    FROM workers CROSS JOIN LATERAL jsonb_each(picture_classes) AS model
    WHERE state <> 'stopped' AND model.key = ANY(:models) AND model.key = ANY(workers.models)
    ORDER BY model, weights, picture_class
""")

# Finds the images of a job.
IMAGES = text("SELECT id FROM images WHERE job_id = :job ORDER BY index")

# Stores queued images with the pictures of others, which are locked, and settles their jobs. Inside `coalesce` the
# state has no statistics: they would say that no image is queued, and each pair of images would be compared.
LINK = text(f"""
    WITH candidate AS (
        SELECT image_id, decode(picture_key, 'hex') AS picture_key,
               {reuse_key(":tenant", "picture_key", "picture_class")} AS reuse_key
        FROM unnest(cast(:images AS uuid[]), cast(:keys AS text[]), cast(:classes AS text[]))
            AS candidate(image_id, picture_key, picture_class)),
    found AS MATERIALIZED (
        SELECT DISTINCT ON (candidate.image_id) candidate.*, picture.key, picture.sha256, picture.bytes,
               picture.render_ms, picture.safety_score, picture.safety_concept
        FROM candidate CROSS JOIN LATERAL (
            SELECT picture.* FROM images AS picture JOIN jobs ON jobs.id = picture.job_id
            WHERE picture.reuse_key = candidate.reuse_key AND picture.state = 'stored'
                AND picture.picture_deleted_at IS NULL AND picture.error_code IS NULL
                AND picture.picture_key = candidate.picture_key AND jobs.tenant_id = :tenant AND {shown()}
            LIMIT 1 FOR SHARE OF picture SKIP LOCKED) AS picture
        ORDER BY candidate.image_id),
    changed AS (
        UPDATE images SET state = 'stored', finished_at = now(), reused = true, key = found.key, sha256 = found.sha256,
            bytes = found.bytes, render_ms = found.render_ms, safety_score = found.safety_score,
            safety_concept = found.safety_concept, picture_key = found.picture_key, reuse_key = found.reuse_key
        FROM found WHERE images.id = found.image_id
            AND coalesce(images.state = 'queued' AND images.lease_id IS NULL, false)
        RETURNING images.id, job_id, lane_id, images.state, images.error_code, images.error_message),
    ended AS (SELECT * FROM changed),
    {SETTLE}
    SELECT (SELECT count(*) FROM changed) AS images,
           (SELECT array_agg(id) FROM settled WHERE finished_at IS NOT NULL) AS ended_jobs
""")

# Finds the objects that are named: by the image that was rendered, or by one that got its picture.
NAMED = text("""
    SELECT doomed.key
    FROM unnest(cast(:keys AS text[]), cast(:jobs AS uuid[]), cast(:indexes AS int[])) AS doomed(key, job_id, index)
    WHERE EXISTS (
            SELECT FROM images
            WHERE images.job_id = doomed.job_id AND images.index = doomed.index AND images.key = doomed.key
                AND images.picture_deleted_at IS NULL)
        OR EXISTS (
            SELECT FROM images WHERE images.key = doomed.key AND images.reused AND images.picture_deleted_at IS NULL)
""")
