"""The promises P1–P8, P13, P14 as questions that must have no answer: to the database, the bucket and the witness."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from common.queue.lanes import EXACT
from common.queue.leases import MAX_ATTEMPTS
from common.storage import MARK, TRIAL, sha256, upload_key
from tests.faults.farm import BUCKET, Farm
from tests.faults.load import Witness

PROMISES = {
    "P1": "every job answered 201 has ended",
    "P2": "nothing is stuck",
    "P3": "each image is visible once, its bytes are those of its row",
    "P4": "a stale lease changes nothing",
    "P5": "terminal is final",
    "P6": "at most 3 attempts, and poison takes no neighbour along",
    "P7": "cancelled shows at once, and no image appears later",
    "P8": "same Idempotency-Key, same job",
    "USE": "what tenants are told they used is what was stored for them",
    "LIM": "what counts for a limit is what was submitted",
    "P13": "a failure of a host ends no image, and a host that is well again comes back",
    "P14": "what was deleted is never seen again, and nothing of it is left",
    "API": "no answer is a 500",
    "S3": "nothing lies in the bucket that no image shows",
}


@dataclass
class Findings:
    broken: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unlucky: int = 0  # innocent images that lost three workers to the storm

    def add(self, promise: str, lines: Iterable[object]) -> None:
        self.broken[promise].extend(map(str, lines))


def judge(farm: Farm, witness: Witness, stuck: Sequence[str], postgres_away: Sequence[tuple[float, float]]) -> Findings:
    found = Findings()
    for promise, lines in witness.contradictions.items():
        found.add(promise, lines)
    jobs = {str(row["id"]): row for row in farm.query("SELECT id, state, finished_at FROM jobs")}
    told = witness.jobs.keys() - witness.deleted.keys()
    found.add("P1", (f"job {id} is not there" for id in told if id not in jobs))
    judge_deletions(farm, witness, found)
    found.add("P1", (f"job {id} is {job['state']}" for id, job in jobs.items() if job["finished_at"] is None))
    found.add("P2", stuck)
    for promise, statement in MUST_BE_EMPTY:
        found.add(promise, (dict(row) for row in farm.query(statement)))
    judge_batches(farm, witness, found)
    read_back(farm, found)
    judge_usage(farm, found)
    judge_limits(farm, found)
    judge_failures(farm, witness, found, postgres_away)
    keyed = farm.query("SELECT key, made_id, tenants.name FROM idempotency_keys JOIN tenants ON tenants.id = tenant_id")
    for row in keyed:
        ids = witness.keys.get((row["name"], row["key"]), set())
        if ids != {str(row["made_id"])}:
            found.add("P8", [f"key {row['key']} has job {row['made_id']}, and its users were answered {sorted(ids)}"])
    return found


def judge_deletions(farm: Farm, witness: Witness, found: Findings) -> None:
    """Of what was deleted there is a tombstone and nothing else: no row, and no bytes, which `read_back` would find."""
    finished = {str(row["id"]) for row in farm.query("SELECT id FROM tombstones WHERE finished_at IS NOT NULL")}
    rows = {
        str(row["id"])
        for row in farm.query("SELECT id FROM jobs UNION SELECT batch_id FROM jobs UNION SELECT id FROM batches")
    }
    found.add("P14", (f"{id} was deleted, and is not gone" for id in witness.deleted if id not in finished))
    found.add("P14", (f"{id} was deleted, and is there" for id in witness.deleted if id in rows))
    found.add("P14", (dict(row) for row in farm.query("SELECT * FROM objects_to_delete")))


MUST_BE_EMPTY = (
    ("P2", "SELECT id, expires_at FROM leases WHERE ended_at IS NULL AND expires_at < now() - interval '10 s'"),
    (
        "P3",
        "SELECT id, count(*) AS times FROM storm_changes WHERE noun = 'image' AND new_state = 'stored'"
        " AND old_state <> 'stored' GROUP BY id HAVING count(*) > 1",
    ),
    ("P3", "SELECT key FROM images WHERE key IS NOT NULL AND NOT reused GROUP BY key HAVING count(*) > 1"),
    (
        "P3",  # what is reused was rendered for the same tenant, and is the same picture
        "SELECT images.id, images.key FROM images JOIN jobs ON jobs.id = images.job_id WHERE reused AND NOT EXISTS ("
        " SELECT FROM storm_changes AS changes JOIN storm_stored USING (id)"
        " WHERE changes.key = images.key AND changes.sha256 = images.sha256 AND tenant_id = jobs.tenant_id)",
    ),
    (
        "P4",
        "SELECT id, key, lease_id FROM images WHERE state = 'stored' AND NOT reused"
        " AND coalesce(strpos(key, lease_id::text), 0) = 0",
    ),
    (
        "P4",
        "SELECT changes.id, changes.new_state, leases.outcome FROM storm_changes AS changes"
        " JOIN leases ON leases.id = changes.new_lease WHERE noun = 'image' AND new_state IN ('stored', 'flagged')"
        " AND leases.outcome IS DISTINCT FROM 'published'",
    ),
    (
        "P4",
        "SELECT id, old_lease, new_lease, new_state FROM storm_changes WHERE noun = 'image'"
        " AND old_lease <> new_lease",  # only by way of the queue, where an image has no lease
    ),
    (
        "P5",
        "SELECT noun, id, old_state, new_state FROM storm_changes"
        " WHERE old_state IN ('stored', 'flagged', 'failed', 'cancelled', 'succeeded')",
    ),
    ("P5", "SELECT id, state FROM jobs WHERE (finished_at IS NULL) <> (open > 0)"),
    (
        "P5",  # the counters of a lane are those of its images
        "SELECT lanes.id, open, stored, flagged, failed, cancelled, counted"
        f" FROM {EXACT} AS lanes CROSS JOIN LATERAL ("
        " SELECT array[count(*) FILTER (WHERE state IN ('queued', 'running')),"
        " count(*) FILTER (WHERE state = 'stored'), count(*) FILTER (WHERE state = 'flagged'),"
        " count(*) FILTER (WHERE state = 'failed'), count(*) FILTER (WHERE state = 'cancelled')] AS counted"
        " FROM images WHERE lane_id = lanes.id) AS truth"
        " WHERE counted <> array[open, stored - deleted_stored, flagged - deleted_flagged, failed - deleted_failed,"
        " cancelled - deleted_cancelled]",
    ),
    ("P6", f"SELECT id, attempts FROM images WHERE attempts > {MAX_ATTEMPTS}"),
    ("P6", "SELECT id FROM images WHERE state = 'failed' AND (error_code IS NULL OR error_message IS NULL)"),
    ("P6", "SELECT id FROM jobs WHERE state = 'failed' AND error_code IS NULL"),
    (
        "P7",
        "SELECT images.id, images.state FROM images JOIN jobs ON jobs.id = job_id WHERE jobs.state = 'cancelled'"
        " AND (images.finished_at IS NULL OR images.finished_at > jobs.finished_at)",
    ),
)


def judge_batches(farm: Farm, witness: Witness, found: Findings) -> None:
    """Each has ended, with a job for each prompt if nobody cancelled it; what was cancelled got no image afterwards."""
    rows = {str(row["id"]): row for row in farm.query(BATCHES)}
    found.add("P1", (f"batch {id} is not there" for id in witness.batches if id not in {*rows, *witness.deleted}))
    for id, row in rows.items():
        told = witness.batches.get(id)
        if row["finished_at"] is None or row["error_code"]:
            found.add("P1", [f"batch {id} is {row['state']}: {row['error_code']}"])
        if (
            told
            and not row["cancelled_at"]
            and (row["made"], row["images"]) != (told.prompts, told.prompts * told.per_prompt)
        ):
            found.add("P1", [f"batch {id} of {told.prompts} prompts has {row['made']} jobs, {row['images']} images"])
        if told and told.stored is not None and row["stored"] != told.stored:
            found.add("P7", [f"batch {id} had {told.stored} images when it was cancelled, and has {row['stored']}"])


BATCHES = """
    SELECT batches.id, batches.state, finished_at, cancelled_at, error_code, made.jobs AS made, made.images, made.stored
    FROM batches CROSS JOIN LATERAL (
        SELECT count(DISTINCT jobs.id) AS jobs, count(images.id) AS images,
               count(*) FILTER (WHERE images.state = 'stored') AS stored
        FROM jobs LEFT JOIN images ON images.job_id = jobs.id WHERE jobs.batch_id = batches.id) AS made
"""


def judge_usage(farm: Farm, found: Findings) -> None:
    """By tenant and model, as the API answers; and the images of its key, which has submitted all."""
    seen = defaultdict[str, dict[str, dict[str, float]]](dict)
    for row in farm.query(STORED):
        sums = {name: float(row[name]) for name in ("images", "gpu_seconds", "megapixels", "bytes")}
        seen[row["name"]][row["model"]] = sums
    for tenant in farm.keys:
        told = {item.pop("model"): {**item, "cost": None} for item in usage(farm, tenant, "model")}
        expected = {model: {**sums, "cost": None} for model, sums in seen[tenant].items()}
        if told != expected:
            found.add("USE", [f"{tenant} is told {told}, and stored was {expected}"])
        by_key = {item["key"]: item["images"] for item in usage(farm, tenant, "key")}
        if by_key != {"storm": sum(sums["images"] for sums in seen[tenant].values())}:
            found.add("USE", [f"{tenant} is told {by_key} of its keys"])


def judge_limits(farm: Farm, found: Findings) -> None:
    """The images of the day, and those that wait: none once all has ended."""
    for row in farm.query(COUNTED):
        if row["counted"] != row["submitted"]:
            found.add("LIM", [f"{row['name']} has {row['counted']} images of today, and submitted {row['submitted']}"])
    for tenant in farm.keys:
        waiting = next(one for one in read_limits(farm, tenant) if one["limit"] == "waiting_images")
        if waiting["used"]:
            found.add("LIM", [f"{tenant} is told that {waiting['used']} images wait, and all have ended"])


def read_limits(farm: Farm, tenant: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {farm.keys[tenant]}"}
    answer = httpx.get(f"{farm.urls[0]}/v1/limits", headers=headers, timeout=30, trust_env=False)
    return list(answer.raise_for_status().json()["items"])


# Of today (UTC), as the limit counts it, and as a trigger saw it.
COUNTED = """
    SELECT name, (SELECT coalesce(sum(images), 0) FROM image_days
                  WHERE image_days.tenant_id = tenants.id AND day = (now() AT TIME ZONE 'UTC')::date) AS counted,
           (SELECT coalesce(sum(images), 0) FROM storm_submitted
            WHERE storm_submitted.tenant_id = tenants.id
                AND (at AT TIME ZONE 'UTC')::date = (now() AT TIME ZONE 'UTC')::date) AS submitted
    FROM tenants
"""


def usage(farm: Farm, tenant: str, by: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {farm.keys[tenant]}"}
    answer = httpx.get(f"{farm.urls[0]}/v1/usage?by={by}", headers=headers, timeout=30, trust_env=False)
    return list(answer.raise_for_status().json()["items"])


STORED = """
    SELECT name, model, count(*) AS images, sum(render_ms) / 1000.0 AS gpu_seconds, sum(pixels) / 1e6 AS megapixels,
           sum(storm_stored.bytes) AS bytes
    FROM storm_stored JOIN tenants ON tenants.id = tenant_id GROUP BY name, model
"""


def read_back(farm: Farm, found: Findings) -> None:
    """Every image that is visible: its bytes, hashed."""
    rows = farm.query("SELECT id, key, sha256, bytes FROM images WHERE state = 'stored'")

    def problem(row: dict[str, Any]) -> str | None:
        try:
            data = farm.s3.get_object(Bucket=BUCKET, Key=row["key"])["Body"].read()
        except Exception as error:
            return f"image {row['id']}: {type(error).__name__} at {row['key']}"
        is_right = (sha256(data), len(data)) == (row["sha256"], row["bytes"])
        return None if is_right else f"image {row['id']}: other bytes at {row['key']}"

    with ThreadPoolExecutor(8) as pool:
        found.add("P3", filter(None, pool.map(problem, rows)))
    uploads = farm.query("SELECT id, format FROM uploads")
    known = {MARK, TRIAL} | {row["key"] for row in rows} | {upload_key(row["id"], row["format"]) for row in uploads}
    found.add("S3", (key for key in keys_of(farm) if key not in known))


def keys_of(farm: Farm) -> Iterable[str]:
    for page in farm.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", ()):
            yield item["Key"]


def judge_failures(farm: Farm, witness: Witness, found: Findings, postgres_away: Sequence[tuple[float, float]]) -> None:
    """Who failed had a reason of its own, or three times the bad luck to be with a worker that the storm took."""
    asked = {"poison": ("worker_lost",), "out_of_memory": ("out_of_memory", "worker_lost")}
    failed = farm.query("SELECT id, job_id, error_code FROM images WHERE state = 'failed'")
    poisonings, lost = farm.poisonings(), defaultdict(list)
    for lease in farm.query(LOST):
        for image in lease["image_ids"]:
            lost[image].append(lease)
    kinds = {id: job.kind for id, job in witness.jobs.items()}
    for row in failed:
        kind, leases = kinds.get(str(row["job_id"]), "plain"), lost[row["id"]]
        if kind in asked:
            if row["error_code"] not in asked[kind]:
                found.add("P6", [f"image {row['id']} of a job that is {kind} failed with {row['error_code']}"])
            continue
        poisons = Counter(poison for poison, name, at in poisonings for lease in leases if was_held(lease, name, at))
        without_cause = sum(not has_cause(farm, lease, postgres_away) for lease in leases)
        if row["error_code"] != "worker_lost":
            found.add("P13", [f"innocent image {row['id']} failed with {row['error_code']}"])
        elif max(poisons.values(), default=0) > 1:
            found.add("P6", [f"image {row['id']} was taken along: {dict(poisons)}"])
        elif without_cause > 1:
            found.add("P6", [f"image {row['id']} failed with worker_lost, and {without_cause} workers were well"])
        else:
            found.unlucky += 1
    for job in witness.jobs.values():
        if job.kind in asked:
            state = farm.query("SELECT state FROM jobs WHERE id = %s", job.id)
            if state and state[0]["state"] not in ("failed", "cancelled"):
                found.add("P6", [f"job {job.id} is {job.kind}, and {state[0]['state']}"])


LOST = """
    SELECT workers.name, image_ids, extract(epoch FROM claimed_at)::float AS claimed,
           extract(epoch FROM ended_at)::float AS ended
    FROM leases LEFT JOIN workers ON workers.id = worker_id WHERE outcome = 'lost' AND leases.started_at IS NOT NULL
"""


def was_held(lease: dict[str, Any], name: str, at: float) -> bool:
    return bool(lease["name"] == name and lease["claimed"] < at < lease["ended"])


def has_cause(farm: Farm, lease: dict[str, Any], postgres_away: Sequence[tuple[float, float]]) -> bool:
    """Whether its worker was killed or frozen meanwhile, or Postgres out of reach."""
    harms = [(harm.began, harm.ended) for harm in farm.harms if harm.name == lease["name"]]
    return any(began < lease["ended"] and ended > lease["claimed"] for began, ended in [*harms, *postgres_away])
