"""The ledger of usage: what each tenant took, by day (in UTC), key, model and tier.

    a lease is published ──► usage_entries ──(the sweep: fold)──► usage_days

The statement that makes images visible enters them, so an image counts once, in the same transaction, and a publish
that is repeated enters nothing. Only stored images count: what failed, was flagged, or was rendered by a lease that
lost it costs nothing. Entries are only inserted, so no publish waits for another one. The sum of both tables (`USED`)
is exact at any time. Nothing here refers to jobs, keys or tenants by a foreign key: usage outlives them.
"""

from sqlalchemy import Connection, text

FOLDED_ENTRIES = 10_000  # at most, in one transaction


def fold(connection: Connection) -> int:
    """Add entries up in their days; how many. Safe in many copies: each skips the entries that another one folds."""
    return int(connection.execute(FOLD, {"limit": FOLDED_ENTRIES}).scalar_one())


# Enters the images that were stored. Follows a CTE changed(job_id, state, bytes, render_ms) of locked jobs; `render_ms`
# is the share of an image in the time of its pipeline call.
ENTER = """
    entered AS (
        INSERT INTO usage_entries (day, tenant_id, key_id, model, tier, images, gpu_ms, pixels, bytes)
        SELECT (now() AT TIME ZONE 'UTC')::date, jobs.tenant_id, jobs.key_id, jobs.model, jobs.tier, count(*),
               coalesce(sum(changed.render_ms), 0),
               coalesce(sum((recipe ->> 'width')::bigint * (recipe ->> 'height')::bigint), 0), sum(changed.bytes)
        FROM changed JOIN jobs ON jobs.id = changed.job_id WHERE changed.state = 'stored'
        GROUP BY jobs.tenant_id, jobs.key_id, jobs.model, jobs.tier)
"""

# What was taken, in rows that are to be summed up.
USED = """
    (SELECT day, tenant_id, key_id, model, tier, images, gpu_ms, pixels, bytes FROM usage_days
     UNION ALL
     SELECT day, tenant_id, key_id, model, tier, images, gpu_ms, pixels, bytes FROM usage_entries)
"""

# Moves entries into their days. The days are ordered, so that two copies cannot deadlock.
FOLD = text("""
    WITH entry AS (
        DELETE FROM usage_entries
        WHERE ctid = ANY(ARRAY(SELECT ctid FROM usage_entries LIMIT :limit FOR UPDATE SKIP LOCKED))
        RETURNING day, tenant_id, key_id, model, tier, images, gpu_ms, pixels, bytes),
    tally AS (
        SELECT day, tenant_id, key_id, model, tier, sum(images) AS images, sum(gpu_ms) AS gpu_ms,
               sum(pixels) AS pixels, sum(bytes) AS bytes
        FROM entry GROUP BY day, tenant_id, key_id, model, tier ORDER BY tenant_id, day, key_id, model, tier),
    folded AS (
        INSERT INTO usage_days AS days (day, tenant_id, key_id, model, tier, images, gpu_ms, pixels, bytes)
        SELECT * FROM tally
        ON CONFLICT (tenant_id, day, key_id, model, tier) DO UPDATE SET images = days.images + excluded.images,
            gpu_ms = days.gpu_ms + excluded.gpu_ms, pixels = days.pixels + excluded.pixels,
            bytes = days.bytes + excluded.bytes)
    SELECT count(*) FROM entry
""")
