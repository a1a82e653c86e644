"""Admission: whether a tenant may submit so much more, within its limits. Counted when images come to wait.

    waiting images     the sum of the tenant's lanes, and what its batches still expand to
    images a day       `image_days`, raised when images are inserted, and what its batches still expand to
    batches, keys      their rows
    stored bytes       `stored_bytes`, which the sweep counts

So nothing is counted when an image ends, and what is rolled back was never counted. A batch counts with all its images:
at its submission if they are known, else chunk by chunk as its file is checked.

Near a limit, submissions of a tenant take turns by a lock until their COMMIT, which makes the limit exact. Far from it,
below half, they only share that lock, after one read: SUBMISSIONS of them at once could not use up the other half.

A caller locks batches and jobs before it asks, and lanes after that.
"""

from collections.abc import Collection, Mapping
from uuid import UUID

from sqlalchemy import Connection, text

from common.accounts import sentence
from common.accounts.limits import Limits
from common.enums import Tier
from common.errors import LimitReached
from common.sentences import Sentence

SUBMISSIONS = 1000  # at once, of all tenants: more than Postgres has connections
SOON_S = 10  # when to come back for what ends or is expanded
UNLIMITED = Limits()


def admit_images(connection: Connection, tenant_id: UUID, limits: Limits, tiers: Collection[Tier]) -> None:
    """Let the transaction insert images of these tiers, one for each, and count them. Raises LimitReached."""
    interactive = sum(tier is Tier.INTERACTIVE for tier in tiers)
    admit(connection, tenant_id, limits, images=len(tiers), interactive=interactive)
    count_day(connection, tenant_id, limits, len(tiers))


def admit_batch(connection: Connection, tenant_id: UUID, limits: Limits, tier: Tier, images: int) -> None:
    """Let the transaction insert a batch that will have so many images, as far as is known. Raises LimitReached."""
    interactive = images if tier is Tier.INTERACTIVE else 0
    admit(connection, tenant_id, limits, images=images, interactive=interactive, batches=1)


def admit(
    connection: Connection,
    tenant_id: UUID,
    limits: Limits,
    *,
    images: int = 0,
    interactive: int = 0,
    batches: int = 0,
    keys: int = 0,
    uploads: int = 0,
) -> None:
    """Let the transaction submit so much more: images, those that come into the tier `interactive`, batches, keys, and
    uploads or datasets. Raises LimitReached. Reads nothing where nothing of that is limited.
    """
    asked = {
        "waiting_images": images,
        "waiting_interactive": interactive,
        "images_a_day": images,
        "preparing_batches": batches,
        "stored_bytes": images + batches + uploads,
        "keys": keys,
    }
    limited = {name: allowed for name in asked if asked[name] and (allowed := getattr(limits, name)) is not None}
    if not limited or _is_far(connection, tenant_id, limited, asked):
        return
    connection.execute(LOCK, {"lock": _lock(tenant_id)})
    counted = connection.execute(READ, {"tenant": tenant_id}).one()
    for name, allowed in limited.items():
        used, more = counted._mapping[name], 1 if name == "stored_bytes" else asked[name]
        if used + more > allowed:
            raise _reached(name, used, allowed, more, counted.seconds_to_midnight)


def count_day(connection: Connection, tenant_id: UUID, limits: Limits, images: int) -> None:
    """Count images that the transaction inserts, if the tenant has a limit on those of a day."""
    if limits.images_a_day is not None and images:
        connection.execute(COUNT_DAY, {"tenant": tenant_id, "images": images})


def read_used(connection: Connection, tenant_id: UUID) -> dict[str, int]:
    """What a tenant uses of each limit that the database knows, by its name, and `seconds_to_midnight`."""
    return connection.execute(READ, {"tenant": tenant_id}).one()._asdict()


def _is_far(connection: Connection, tenant_id: UUID, limited: Mapping[str, int], asked: Mapping[str, int]) -> bool:
    """Whether no limit is near; then the transaction shares the tenant's lock."""
    most = dict.fromkeys(SHARED) | {name: allowed // 2 - asked[name] * SUBMISSIONS for name, allowed in limited.items()}
    if "stored_bytes" in limited:
        most["stored_bytes"] = limited["stored_bytes"] - 1  # the sweep has counted them: a lock makes them no truer
    if most.keys() - set(SHARED) or any(number is not None and number < 0 for number in most.values()):
        return False
    return bool(connection.execute(SHARE, {"tenant": tenant_id, "lock": _lock(tenant_id), **most}).scalar())


def _lock(tenant_id: UUID) -> int:
    """The number of the tenant's lock. Another tenant may have it too: then the two take turns."""
    return int.from_bytes(tenant_id.bytes[8:], signed=True)


def _reached(name: str, used: int, allowed: int, more: int, seconds_to_midnight: int) -> LimitReached:
    helps = used > 0 and more <= allowed
    retry_after_s = {"images_a_day": seconds_to_midnight, "keys": None, "stored_bytes": None}.get(name, SOON_S)
    message = _words(name, used, allowed, more)
    return LimitReached(message, limit=name, used=used, allowed=allowed, retry_after_s=retry_after_s if helps else None)


def _words(name: str, used: int, allowed: int, more: int) -> Sentence:
    match name:
        case "waiting_images":
            return sentence("limit_waiting_images", used=used, allowed=allowed, more=more)
        case "waiting_interactive":
            return sentence("limit_waiting_interactive", used=used, allowed=allowed, more=more)
        case "images_a_day":
            return sentence("limit_images_a_day", used=used, allowed=allowed, more=more)
        case "preparing_batches":
            return sentence("limit_preparing_batches", used=used, allowed=allowed)
        case "stored_bytes":
            return sentence("limit_stored_bytes", used=used, allowed=allowed)
        case _:
            return sentence("limit_keys", used=used, allowed=allowed)


# What a tenant uses of its limits. `open`: images of a lane that have not ended.
USED = """
    SELECT (lane.images + batch.images)::bigint AS waiting_images,
           (lane.interactive + batch.interactive)::bigint AS waiting_interactive,
           (batch.images + coalesce((
               SELECT images FROM image_days WHERE tenant_id = :tenant AND day >= current_date), 0))::bigint
               AS images_a_day,
           batch.preparing AS preparing_batches,
           coalesce((SELECT bytes FROM stored_bytes WHERE tenant_id = :tenant), 0) AS stored_bytes
    FROM (
        SELECT coalesce(sum({open}), 0) AS images,
               coalesce(sum({open}) FILTER (WHERE tier = 'interactive'), 0) AS interactive
        FROM lanes {join} WHERE tenant_id = :tenant AND lanes.open > 0) AS lane
    CROSS JOIN (
        SELECT coalesce(sum(ahead), 0) AS images,
               coalesce(sum(ahead) FILTER (WHERE tier = 'interactive'), 0) AS interactive, count(*) AS preparing
        FROM batches CROSS JOIN LATERAL (
            SELECT greatest(greatest(expected, counted) - images, 0) AS ahead) AS expansion
        WHERE tenant_id = :tenant AND finished_at IS NULL AND cancelled_at IS NULL AND expanded_at IS NULL) AS batch
"""

SHARED = ("waiting_images", "waiting_interactive", "images_a_day", "stored_bytes")

# Share the tenant's lock if it uses so much of its limits at most. The lanes may count too much, never too little.
SHARE = text(f"""
    SELECT CASE WHEN {" AND ".join(f"coalesce({name} <= cast(:{name} AS bigint), true)" for name in SHARED)}
           THEN pg_try_advisory_xact_lock_shared(:lock) ELSE false END
    FROM ({USED.format(open="lanes.open", join="")}) AS used
""")

# Lock the tenant's submissions.
LOCK = text("SELECT pg_advisory_xact_lock(:lock)")

UNCOUNTED = """LEFT JOIN (SELECT lane_id, sum(ended) AS ended FROM lane_changes GROUP BY lane_id) AS uncounted
            ON lane_id = lanes.id"""

# Read what a tenant uses of its limits, exactly.
READ = text(f"""
    SELECT used.*,
           (SELECT count(*) FROM api_keys
            WHERE tenant_id = :tenant AND revoked_at IS NULL AND coalesce(expires_at > now(), true)) AS keys,
           ceil(extract(epoch FROM current_date + 1 - now()))::int AS seconds_to_midnight
    FROM ({USED.format(open="lanes.open - coalesce(uncounted.ended, 0)", join=UNCOUNTED)}) AS used
""")

# Count images on the tenant's day: the row's, if that is later than the day on which this transaction began.
COUNT_DAY = text("""
    INSERT INTO image_days AS old (tenant_id, day, images) VALUES (:tenant, current_date, :images)
    ON CONFLICT (tenant_id) DO UPDATE SET day = greatest(old.day, excluded.day),
        images = excluded.images + CASE WHEN old.day >= excluded.day THEN old.images ELSE 0 END
""")
