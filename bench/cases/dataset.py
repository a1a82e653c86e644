"""From a file of prompts to a verified dataset: 100,000 prompts, one image each, uploaded, expanded, rendered, exported
as a WebDataset while they are rendered, downloaded and verified image by image, by the command line. `bare` is the
slower of two loops: pipeline calls that discard their images, and puts of such an image into the same store from eight
threads. The GPU is a fake one that takes 200 ms for a microbatch of 8; at full speed, where it takes 20, the embedded
store is the limit, which every image passes twice. No process may take more than 500 MB at any time. `kept columns`:
20,000 prompts with three columns of their own, which go into the dataset, in each layout.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.cases import farm_vs_bare
from bench.harness import peers
from bench.harness.farm import Farm, farm
from bench.harness.measurement import HOME, Figures, Goal, Options, Sides
from common.config import Settings
from common.db import connect
from common.storage import Storage
from worker.render.encode import encode

ROUNDS = 1  # it takes most of an hour
SPEEDS = {"200 ms": "stub:0.01", "full speed": "stub:0.001"}  # name → device, by the seconds of a step
LAYOUTS = {"webdataset": 0.7, "imagefolder": 0.5, "parquet": 0.5}  # name → the least part of the bare rate
KEPT = "kept columns"
GOALS = (
    Goal("dataset, 200 ms", "bare, 200 ms", at_least=0.7),
    Goal("dataset, full speed", "bare, full speed"),
    *(Goal(f"dataset, {speed}", measure="largest process, MB", at_most=500) for speed in SPEEDS),
    *(Goal(f"{KEPT}, {layout}", f"bare, {KEPT}", at_least=part) for layout, part in LAYOUTS.items()),
    *(Goal(f"{KEPT}, {layout}", measure="largest process, MB", at_most=500) for layout in LAYOUTS),
)
RECIPE = {"model": "mini-zh", "width": 128, "height": 128, "steps": peers.STEPS}
UPLOADS = 8
SAMPLE_S = 1.0
TIMEOUT_S = 3 * 3600


@contextmanager
def sides(options: Options) -> Iterator[Sides]:
    prompts = {"200 ms": 400 if options.quick else 100_000, "full speed": 800 if options.quick else 20_000}
    with farm() as the_farm, the_farm.api(the_farm.settings) as url, the_farm.control(the_farm.settings):
        found: dict[str, Any] = {}
        for speed, device in SPEEDS.items():
            found[f"bare, {speed}"] = partial(bare, the_farm.settings, device, 20 if options.quick else 100)
            found[f"dataset, {speed}"] = partial(dataset, the_farm, url, device, plain_prompts(prompts[speed]))
        device, rows = SPEEDS["200 ms"], kept_prompts(400 if options.quick else 20_000)
        found[f"bare, {KEPT}"] = partial(bare, the_farm.settings, device, 20 if options.quick else 100)
        for layout in LAYOUTS:
            found[f"{KEPT}, {layout}"] = partial(dataset, the_farm, url, device, rows, layout, "--keep=id,label,score")
        yield found


def bare(settings: Settings, device: str, microbatches: int) -> Figures:
    loop = farm_vs_bare.bare(settings, device, microbatches, RECIPE)["images/s"]
    puts = puts_a_second(Storage(settings, connections=UPLOADS), microbatches * peers.MICROBATCH)
    return {"images/s": min(loop, puts), "loop, images/s": loop, "puts, images/s": puts}


def puts_a_second(store: Storage, count: int) -> float:
    noise = np.random.default_rng(0).integers(0, 16, (128, 128, 3), np.uint8)
    data = encode(noise, "png", {})
    with ThreadPoolExecutor(UPLOADS) as pool:
        began = time.monotonic()
        list(pool.map(lambda number: store.put(f"bare/{number}.png", data, "image/png"), range(count)))
        return count / (time.monotonic() - began)


def plain_prompts(count: int) -> list[str]:
    return [f"红色的圆形，第{place}幅" for place in range(count)]


def kept_prompts(count: int) -> list[str]:
    """Lines of JSON, each with three values to keep."""
    rows = (
        {"prompt": f"红色的圆形，第{place}幅", "id": f"{place:08x}", "label": f"形状 {place % 7}", "score": place / 7}
        for place in range(count)
    )
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def dataset(the_farm: Farm, url: str, device: str, lines: list[str], layout: str = "webdataset", *more: str) -> Figures:
    database = connect(the_farm.settings, pool=1)
    environment = {**os.environ, "HUAFANG_URL": url, "HUAFANG_KEY": the_farm.key(database)}
    database.dispose()
    with tempfile.TemporaryDirectory(prefix="huafang-bench-") as home, Memory() as memory:
        file, folder = Path(home) / ("prompts.jsonl" if more else "prompts.txt"), Path(home) / "dataset"
        file.write_text("\n".join(lines))
        call = partial(huafang, environment)
        with the_farm.worker(the_farm.settings, device, "--models", str(RECIPE["model"]), TORCH_THREADS="1"):
            began = time.monotonic()
            size, steps = f"{RECIPE['width']}x{RECIPE['height']}", str(RECIPE["steps"])
            batch = call("batch", "submit", str(file), "--seed=1", f"--size={size}", f"--steps={steps}", *more)
            call("dataset", "export", batch, f"--out={folder}", f"--layout={layout}")
            written = time.monotonic() - began
            call("dataset", "verify", str(folder))
            seconds = time.monotonic() - began
    return {
        "images/s": len(lines) / seconds,
        "until it is here, s": written,
        "until it is verified, s": seconds,
        "largest process, MB": max(memory.found.values()),
        **{f"{name}, MB": size for name, size in sorted(memory.found.items())},
    }


def huafang(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-P", "-m", "cli", *arguments, "--format=quiet"]
    done = subprocess.run(command, cwd=HOME, env=environment, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
    done.check_returncode()
    return done.stdout.strip()


class Memory:
    """Samples every process that this one has started: the maximum of each kind, in MB."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    command, size = process.cmdline(), process.memory_info().rss / 1e6
                    if command:  # one that has ended has none
                        self.found[kind_of(command)] = max(self.found.get(kind_of(command), 0.0), size)


def kind_of(command: list[str]) -> str:
    """`python -m worker control …` → worker control; `/…/bin/postgres -D …` → postgres."""
    if "-m" not in command:
        return Path(command[0].partition(" ")[0].rstrip(":")).name
    module = command[command.index("-m") + 1 :]
    return " ".join(module[:2]) if module[0] in ("worker", "cli") else module[0]
