"""A database of a farm after a month of use: a million jobs in all states, with Chinese prompts, in 50 batches, and 20
busy workers. Some SQL statements insert it; nothing is rendered, and the tables' constraints hold.
"""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from bench.harness.backlog import vacuum
from common.accounts import tenants
from common.datasets.layout import DatasetPlan
from common.db import transaction
from common.queue import stats

BATCHES = 50
WORKERS = 20
MICROBATCH = 8
MODELS = ("zh-v0", "zh-v1", "taiyi", "mini-zh")
RARE = "冰糖葫芦摊"  # in one prompt of a hundred thousand
# The first words are in many prompts, the last in few.
WORDS = """
    水墨 山水 亭子 雪中 红色 圆形 女孩 打开 另一 世界 大门 夜空 星星 草地 大海 小猫 老虎 花朵 月亮 太阳 森林
    城市 雨天 街道 古风 油画 赛博 朋克 机器 凤凰 竹林 石桥 渔船 老人 孩子 微笑 蓝色 金色 光线 柔和 高清 细节
    电影 质感 春天 秋天 落叶 湖边 梅花 荷塘 灯笼 集市 火车 飞鸟 云海 瀑布 沙漠 骆驼 长城 宫殿 书房 茶壶 瓷器
    旗袍 剪纸 年画 皮影 京剧 江南 塞外 草原 骏马 雪山 冰川 极光 银河 宇宙 飞船 珊瑚 鲸鱼 水母 蝴蝶 蜻蜓 麦田
    稻浪 果园 葡萄 石榴 牡丹 菊花 兰草 松树 柳枝 炊烟 晚霞 晨雾
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Stock:
    """The rows that a bench requests."""

    tenant_id: UUID
    big_batch: UUID  # half of all jobs: it runs
    old_batch: UUID
    jobs: list[UUID]  # some, of all ages


def stock_up(database: Engine, jobs: int) -> Stock:
    """Fill an empty database. What a bench requests belongs to the tenant `bench`."""
    with transaction(database) as connection:
        tenant_id = tenants.ensure_tenant(connection, "bench")
        tenants.ensure_tenant(connection, "another tenant")
        parameters = {
            "tenant": tenant_id,
            "jobs": jobs,
            "batches": BATCHES,
            "workers": WORKERS,
            "microbatch": MICROBATCH,
            "models": list(MODELS),
            "words": WORDS,
            "dataset": DatasetPlan().model_dump_json(),
            "rare": RARE,
        }
        connection.execute(text("SELECT setseed(0.5)"))
        for statement in STATEMENTS:
            connection.execute(text(statement), parameters)
        stats.take_sample(connection)
        found = pick(connection, tenant_id)
    vacuum(database)
    return found


def pick(connection: Connection, tenant_id: UUID) -> Stock:
    batches = list(connection.execute(text("SELECT id FROM batches ORDER BY id")).scalars())
    jobs = list(connection.execute(SOME_JOBS, {"tenant": tenant_id}).scalars())
    return Stock(tenant_id, batches[-1], batches[BATCHES // 2], jobs)


SOME_JOBS = text("""
    SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS all_jobs
                    FROM jobs WHERE tenant_id = :tenant) AS job
    WHERE place % greatest(all_jobs / 40, 1) = 0
""")

# Job n of all, the oldest first. Every twentieth stands alone; the others are in batches, one after the other, the last
# of which has half of them and is rendered now. Before the edge all has ended, but for a batch that rests.
LAY_OUT = """
    CREATE TEMPORARY TABLE plan ON COMMIT DROP AS
    SELECT n, job.batch, job.is_alone, uuidv7(job.created_at - now()) AS id, job.created_at,
           CASE WHEN job.is_alone THEN (array['interactive', 'standard'])[1 + n / 20 % 2] ELSE 'bulk' END AS tier,
           CASE WHEN job.is_alone THEN job.models[1 + floor(3.9 * random() ^ 3)::int]
                ELSE job.models[1 + job.batch % 3] END AS model,
           CASE WHEN job.waits THEN 'queued'
                WHEN random() < 0.02 THEN 'failed'
                WHEN job.batch = 10 AND random() < 0.3 THEN 'cancelled'
                ELSE 'succeeded' END AS state,
           job.prompt
    FROM (
        SELECT n, n % 20 = 19 AS is_alone, place.batch, cast(:models AS text[]) AS models,
               now() - interval '30 days' * (1 - n::float / :jobs) - interval '1 minute' AS created_at,
               CASE WHEN n % 20 = 19 THEN n > :jobs - 400
                    ELSE n >= 0.8 * :jobs OR place.batch = :batches - 2 AND n % 3 = 0 END AS waits,
               array_to_string(ARRAY(SELECT words[1 + floor(cardinality(words) * random() ^ 1.7)::int]
                                     FROM generate_series(1, 4 + n % 9)), '')
                   || CASE WHEN n % 100000 = 77 THEN :rare ELSE '' END || '，第' || n || '幅' AS prompt
        FROM generate_series(0, :jobs - 1) AS n
        CROSS JOIN (SELECT cast(:words AS text[]) AS words) AS vocabulary
        CROSS JOIN LATERAL (
            SELECT least(floor(2.0 * (:batches - 1) * n / :jobs), :batches - 1)::int AS batch) AS place) AS job
"""

FILL_BATCHES = """
    WITH upload AS (
        INSERT INTO uploads (id, tenant_id, format, bytes, sha256)
        SELECT uuidv7(), :tenant, 'txt', 0, '' FROM generate_series(1, 1) RETURNING id),
    batch AS (
        SELECT batch, min(created_at) AS created_at, max(created_at) AS expanded_at, count(*) AS jobs,
               bool_and(state NOT IN ('queued')) AS has_ended, min(model) AS model
        FROM plan WHERE NOT is_alone GROUP BY batch)
    INSERT INTO batches (id, tenant_id, upload_id, name, tier, plan, prompts, jobs, images, created_at, checked_at,
                         expanded_at, paused_at, finished_at)
    SELECT uuidv7(created_at - now()), :tenant, upload.id, '第' || batch || '批', 'bulk',
           jsonb_build_object('defaults', jsonb_build_object('model', model), 'images_per_prompt', 1, 'seed', 0),
           jobs, jobs, jobs, created_at, created_at, expanded_at,
           CASE WHEN batch = :batches - 2 THEN now() END, CASE WHEN has_ended THEN expanded_at END
    FROM batch CROSS JOIN upload
"""

FILL_JOBS = """
    INSERT INTO jobs (id, tenant_id, batch_id, position, tier, state, recipe, count, open, failed, error_code,
                      error_message, created_at, started_at, finished_at)
    SELECT plan.id, CASE WHEN is_alone AND n % 3 = 0 THEN other.id ELSE :tenant END,
           CASE WHEN NOT is_alone THEN batches.id END,
           CASE WHEN NOT is_alone THEN row_number() OVER (PARTITION BY batches.id, is_alone ORDER BY n) - 1 END,
           plan.tier::tier, plan.state::job_state,
           jsonb_build_object(
               'prompt', prompt, 'negative_prompt', '', 'model', model, 'width', 512, 'height', 512, 'steps', 20,
               'scheduler', 'lms', 'guidance', 7.5, 'seeds', jsonb_build_array(n), 'mode', 'text2image',
               'format', 'png'),
           1, (plan.state = 'queued')::int, (plan.state = 'failed')::int,
           CASE WHEN plan.state = 'failed' THEN (array['out_of_memory', 'worker_lost', 'nan_image'])[1 + n % 3] END,
           CASE WHEN plan.state = 'failed' THEN 'It could not be rendered.' END,
           plan.created_at, CASE WHEN plan.state <> 'queued' THEN plan.created_at END,
           CASE WHEN plan.state <> 'queued' THEN least(plan.created_at + interval '9 s', now()) END
    FROM plan CROSS JOIN (SELECT id FROM tenants WHERE name = 'another tenant') AS other
    LEFT JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS batch FROM batches) AS batches USING (batch)
    ORDER BY n
"""

FILL_LANES = """
    INSERT INTO lanes (tenant_id, tier, model, compatibility, batch_id, closed, open)
    SELECT jobs.tenant_id, jobs.tier, model, model || ' 512x512', batch_id, bool_or(batches.paused_at IS NOT NULL), 0
    FROM jobs LEFT JOIN batches ON batches.id = jobs.batch_id
    GROUP BY jobs.tenant_id, jobs.tier, model, batch_id
"""

# The microbatches of each worker: 8 images each of the running batch, one that the worker renders and one that it has
# claimed ahead; and the last 25,000 microbatches of ended images.
ASSIGN = """
    CREATE TEMPORARY TABLE assignments ON COMMIT DROP AS
    WITH numbered AS (
        SELECT jobs.id AS job_id, finished_at,
               (row_number() OVER (PARTITION BY finished_at IS NULL
                                   ORDER BY CASE WHEN finished_at IS NULL THEN jobs.id END,
                                            jobs.finished_at DESC, jobs.id DESC) - 1) / :microbatch AS microbatch
        FROM jobs WHERE finished_at IS NOT NULL OR batch_id = (SELECT id FROM batches ORDER BY id DESC LIMIT 1))
    SELECT job_id, microbatch % :workers AS worker, finished_at IS NULL AND microbatch < :workers AS runs,
           first_value(lease) OVER (PARTITION BY finished_at IS NULL, microbatch) AS lease_id
    FROM (SELECT *, uuidv7(coalesce(finished_at, now()) - now() - interval '9 s') AS lease FROM numbered) AS numbered
    WHERE microbatch < CASE WHEN finished_at IS NULL THEN 2 * :workers ELSE 25000 END
"""

RUN = """
    UPDATE jobs SET state = 'running', started_at = now() FROM assignments
    WHERE assignments.job_id = jobs.id AND assignments.runs
"""

FILL_IMAGES = """
    INSERT INTO images (id, job_id, lane_id, index, state, attempts, lease_id, key, sha256, bytes, error_code,
                        error_message, render_ms, store_ms, started_at, finished_at)
    SELECT uuidv7(made.created_at - now()), made.id, lane_id, 0, made.state::image_state, (made.state <> 'queued')::int,
           assignments.lease_id, CASE WHEN is_stored THEN 'images/' || made.id || '/0.png' END,
           CASE WHEN is_stored THEN repeat('0', 64) END, CASE WHEN is_stored THEN 400000 END,
           error_code, error_message, CASE WHEN is_stored THEN 2000 END, CASE WHEN is_stored THEN 30 END,
           made.started_at, made.finished_at
    FROM (
        SELECT jobs.*, lanes.id AS lane_id, jobs.state = 'stored' AS is_stored
        FROM (SELECT id, tenant_id, tier, model, batch_id, created_at, started_at, finished_at, error_code,
                     error_message, CASE WHEN state <> 'succeeded' THEN state::text
                                         WHEN random() < 0.015 THEN 'flagged' ELSE 'stored' END AS state
              FROM jobs) AS jobs
        JOIN lanes ON (lanes.tenant_id, lanes.tier, lanes.model) = (jobs.tenant_id, jobs.tier, jobs.model)
            AND coalesce(lanes.batch_id, lanes.tenant_id) = coalesce(jobs.batch_id, jobs.tenant_id)) AS made
    LEFT JOIN assignments ON assignments.job_id = made.id
    ORDER BY made.id
"""

FILL_LEASES = """
    INSERT INTO leases (id, worker_id, image_ids, claimed_at, started_at, expires_at, ended_at, outcome, needs_cleanup)
    SELECT assignments.lease_id, workers.id, array_agg(images.id ORDER BY images.id),
           coalesce(min(images.started_at), now()) - interval '1 s', min(images.started_at), now() + interval '1 h',
           max(images.finished_at), CASE WHEN max(images.finished_at) IS NOT NULL THEN 'published'::lease_outcome END,
           max(images.finished_at) IS NULL
    FROM assignments JOIN images ON images.job_id = assignments.job_id
    JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS worker FROM workers) AS workers USING (worker)
    GROUP BY assignments.lease_id, workers.id
"""

FILL_WORKERS = """
    INSERT INTO workers (id, name, class, models, resident, refusals, seconds_per_image, capacity, state)
    SELECT uuidv7(), 'gpu-' || number,
           '{"device": "NVIDIA L4", "precision": "fp16", "torch": "2.13.0"}', models[1:3], models[1:1],
           jsonb_build_object(models[4], 'Its files are not there.'), jsonb_build_object(models[1], 0.6),
           jsonb_build_object(models[1], 8), CASE WHEN number = 7 THEN 'draining' ELSE 'ready' END::worker_state
    FROM generate_series(1, :workers) AS number CROSS JOIN (SELECT cast(:models AS text[]) AS models) AS catalogue
"""

COUNT = """
    UPDATE lanes SET open = counted.open, stored = counted.stored, flagged = counted.flagged, failed = counted.failed,
                     cancelled = counted.cancelled
    FROM (SELECT lane_id, count(*) FILTER (WHERE finished_at IS NULL) AS open,
                 count(*) FILTER (WHERE state = 'stored') AS stored,
                 count(*) FILTER (WHERE state = 'flagged') AS flagged,
                 count(*) FILTER (WHERE state = 'failed') AS failed,
                 count(*) FILTER (WHERE state = 'cancelled') AS cancelled
          FROM images GROUP BY lane_id) AS counted
    WHERE counted.lane_id = lanes.id
"""

FILL_SAMPLES = """
    INSERT INTO lane_samples (minute, model, tier, stored, flagged, failed, cancelled)
    SELECT minute, model, tier, share * stored, share * flagged, share * failed, share * cancelled
    FROM (SELECT model, tier, sum(stored) AS stored, sum(flagged) AS flagged, sum(failed) AS failed,
                 sum(cancelled) AS cancelled FROM lanes GROUP BY model, tier) AS counted
    CROSS JOIN (
        SELECT minute, extract(epoch FROM minute - min(minute) OVER ()) / 86400 / 8 AS share
        FROM generate_series(date_trunc('minute', now() - interval '8 days'), now() - interval '1 minute',
                             interval '1 minute') AS minute) AS clock
"""

FILL_DATASETS = """
    INSERT INTO datasets (id, tenant_id, batch_id, plan, shards, images, pictures, files, bytes, digest, begun_at,
                          finished_at)
    SELECT uuidv7(), :tenant, id, cast(:dataset AS jsonb), 3, images, images, 9, images * 400000, repeat('0', 64),
           now(), now()
    FROM batches WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 20
"""

STATEMENTS = (
    LAY_OUT,
    "ANALYZE plan",
    FILL_BATCHES,
    FILL_JOBS,
    FILL_LANES,
    FILL_WORKERS,
    "ANALYZE jobs",
    ASSIGN,
    RUN,
    FILL_IMAGES,
    "ANALYZE images",
    FILL_LEASES,
    COUNT,
    FILL_SAMPLES,
    FILL_DATASETS,
)
