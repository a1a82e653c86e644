"""One, two and four worker processes with a fake GPU each (600 ms a microbatch of 8 images of 512×512) empty one queue;
all else runs on the same machine: API, control worker, Postgres, Valkey and the store. Compared is the throughput a
worker: 1 would be perfect. On a machine of two cores, four GPUs render more images than its cores encode and its
embedded store accepts (Swift, one process, at most one core), so the last side has four workers and an instant store.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.harness import load
from bench.harness.farm import Farm, farm
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.db import connect

STEPS = 20
GPU = f"stub:{0.6 / STEPS}"
MEASURE = "images/s a worker"

GOALS = (
    Goal("2 workers", "1 worker", MEASURE),
    Goal("4 workers", "1 worker", MEASURE),
    Goal("4 workers, instant store", "1 worker", MEASURE),
)


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    microbatches = 6 if options.quick else 30  # a worker
    with farm() as the_farm, the_farm.api(the_farm.settings) as url, the_farm.control(the_farm.settings):
        run = partial(empty_a_queue, the_farm, url, microbatches)
        with the_farm.instant_store() as instant:
            yield {
                "1 worker": lambda: run(1),
                "2 workers": lambda: run(2),
                "4 workers": lambda: run(4),
                "4 workers, instant store": lambda: run(4, S3_ENDPOINT_URL=instant),
            }


def empty_a_queue(the_farm: Farm, url: str, microbatches: int, workers: int, **changes: str) -> Figures:
    settings = the_farm.settings
    database = connect(settings, pool=1)
    since, key = load.now(database), the_farm.key(database)
    with ExitStack() as processes:
        for _ in range(workers):
            processes.enter_context(the_farm.worker(settings, GPU, "--models", "zh-v0", **changes))
        load.submit(url, key, 8 * microbatches * workers, model="zh-v0", width=512, height=512, steps=STEPS)
        load.wait_until_done(database, 120 + microbatches)
    found = load.steady(database, since)
    database.dispose()
    return {MEASURE: found["images/s"] / workers, **found}
