"""The throughput of a GPU in a whole farm, beside the GPU alone. `bare` is a loop of pipeline calls that discards its
images: the maximum of the device. `farm` is the product: jobs submitted over HTTP, Celery's messages, leases in
Postgres, PNGs of 400 KB and more in the store, a row an image, a control worker beside it; counted are the images that
became visible, in the steady middle, by the database's clock. `naive` and `serial` are the simplest Celery workers:
bench/harness/peers.py. The GPU is a fake one that lets other threads run, as a GPU does: 600 or 200 ms for a microbatch
of 8 at 512×512. The embedded store (Swift, one process) takes more CPU for an image than the farm itself, on the same
cores, so the farm is shown with an instant store, too. The CPU time of all worker threads but the render thread (the
busiest) is given per image. The last two sides render with mini-zh on a CPU, where rendering and storing use the same
cores.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from secrets import token_hex
from typing import Any

import psutil

from bench.harness import load, peers
from bench.harness.farm import Farm, farm, wait_until
from bench.harness.measurement import Figures, Goal, Options, Sides
from common.catalog import catalog
from common.config import Settings
from common.db import connect
from common.recipes.recipe import Draft, resolve
from embedded.farm import variables
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest

GOALS = (
    Goal("farm, 600 ms", "bare, 600 ms", at_least=0.97),
    Goal("farm, instant store, 600 ms", "bare, 600 ms"),
    Goal("naive, 600 ms", "bare, 600 ms"),
    Goal("serial, 600 ms", "bare, 600 ms"),
    Goal("farm, 200 ms", "bare, 200 ms", at_least=0.95),
    Goal("farm, instant store, 200 ms", "bare, 200 ms"),
    Goal("naive, 200 ms", "bare, 200 ms"),
    Goal("serial, 200 ms", "bare, 200 ms"),
    Goal("farm, mini-zh", "bare, mini-zh"),
    Goal("farm, random SD 1.x", "bare, random SD 1.x", at_least=0.97),
    Goal("farm, instant store, random SD 1.x", "bare, random SD 1.x"),
)

Recipe = dict[str, Any]
BESIDE = "CPU ms an image outside the render thread"

MINI: Recipe = {"model": "mini-zh", "width": 128, "height": 128, "steps": 20}


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    seconds = 4.0 if options.quick else 15.0  # of rendering, a side and round
    with farm() as the_farm:
        settings = the_farm.settings
        if options.device != "stub":
            from bench.harness import random_model  # imports torch

            settings = settings.model_copy(update={"catalog": random_model.write(the_farm.site.home)})
        with the_farm.api(settings) as url, the_farm.control(settings), the_farm.instant_store() as instant:
            pair = partial(both, the_farm, settings, url, instant)
            if options.device != "stub":
                yield pair("random SD 1.x", options.device, 4 if options.quick else 20, random_model.RECIPE)
                return
            found: dict[str, Callable[[], Figures]] = {}
            for ms in (600, 200):
                device, count = f"stub:{ms / 1000 / peers.STEPS}", round(seconds / (ms / 1000))
                found |= pair(f"{ms} ms", device, count, peers.RECIPE)
                for kind in ("naive", "serial"):
                    found[f"{kind}, {ms} ms"] = partial(peer, the_farm, kind, ms / 1000, count)
            mini = pair("mini-zh", "cpu", 5 if options.quick else 8, MINI)
            yield found | {side: run for side, run in mini.items() if "instant" not in side}


def both(
    the_farm: Farm, settings: Settings, url: str, instant: str, name: str, device: str, count: int, recipe: Recipe
) -> dict[str, Callable[[], Figures]]:
    """The bare loop and the farm, with either store, on one device."""
    run = partial(whole_farm, the_farm, settings, url, device, count, recipe)
    return {
        f"bare, {name}": partial(bare, settings, device, count, recipe),
        f"farm, {name}": run,
        f"farm, instant store, {name}": partial(run, S3_ENDPOINT_URL=instant),
    }


def bare(settings: Settings, device: str, microbatches: int, recipe: Recipe) -> Figures:
    """Pipeline calls, one after the other. The first one warms up and is not counted."""
    known = catalog.read(settings.catalog)
    name = str(recipe["model"])
    the_recipe = resolve(Draft.model_validate({"prompt": "红色的圆形", **recipe}), known, name, root_seed=0)
    pipeline = registry.load(known.get(name), device, threads=1)
    strokes = [ImageRequest(the_recipe, seed) for seed in range(peers.MICROBATCH)]
    pipeline.generate(strokes, lambda step, steps: None)
    began = time.monotonic()
    for _ in range(microbatches):
        pipeline.generate(strokes, lambda step, steps: None)
    seconds = time.monotonic() - began
    pipeline.close()
    return {"images/s": microbatches * len(strokes) / seconds}


def whole_farm(
    the_farm: Farm, settings: Settings, url: str, device: str, microbatches: int, recipe: Recipe, **changes: str
) -> Figures:
    """Jobs submitted at once, then rendered by a worker that is started for them."""
    database = connect(settings, pool=1)
    since, key = load.now(database), the_farm.key(database)
    load.submit(url, key, peers.MICROBATCH * microbatches, **recipe)
    with the_farm.worker(settings, device, "--models", str(recipe["model"]), TORCH_THREADS="1", **changes) as process:
        before, images = cpu_s(process.pid), load.stored(database, since)
        load.wait_until_done(database, 180)
        spent, images = cpu_s(process.pid) - before, load.stored(database, since) - images
    found = load.steady(database, since)
    database.dispose()
    return {**found, BESIDE: sum(sorted(spent.values())[:-1]) / images * 1000}


def cpu_s(process: int) -> Counter[int]:
    """CPU seconds of each thread."""
    return Counter({thread.id: thread.user_time + thread.system_time for thread in psutil.Process(process).threads()})


def peer(the_farm: Farm, kind: str, microbatch_s: float, microbatches: int) -> Figures:
    """Renders fewer images than the other sides, because each takes longer."""
    settings, run = the_farm.settings, token_hex(4)
    app, address = peers.app_of(settings.redis_url.get_secret_value()), settings.database_url.get_secret_value()
    images = peers.MICROBATCH * min(max(microbatches // 3, 5), 12)
    seeds = list(range(images))
    messages: list[Any] = seeds
    if kind == "serial":
        messages = [seeds[at : at + peers.MICROBATCH] for at in range(0, images, peers.MICROBATCH)]
    peers.make_table(address)
    for message in messages:
        app.send_task(kind, args=[run, message], queue="peers")
    with the_farm.program("bench.harness.peers", **variables(settings), BENCH_MICROBATCH_S=str(microbatch_s)):
        wait_until(lambda: len(peers.moments(address, kind, run)) == images, seconds=180)
    moments = [moment.timestamp() for moment in peers.moments(address, kind, run)]
    size = 1 if kind == "naive" else peers.MICROBATCH
    return {"images/s": load.rate([(moments[at], size) for at in range(size - 1, images, size)])}
