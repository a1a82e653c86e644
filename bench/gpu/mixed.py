"""A mixed queue on one worker of a whole farm: `python -m bench.gpu.mixed NAME [--tiny]` prints its figures as JSON.

Jobs of three models, in turn: two of the size of Stable Diffusion 1.x with UNets of their own, and mini-zh; with
`--tiny` mini-zh under three names. All are submitted at once, then a worker starts.
"""

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.harness import load
from bench.harness.farm import farm
from common.config import SHIPPED_CATALOG
from common.db import connect

MINI = SHIPPED_CATALOG.parent / "mini-zh"
ENTRY = """
[models.{name}]
source = "{source}"
family = "stable-diffusion-zh"
description = "One of a mixed queue."
licence = "none"
licence_url = ""
width = {side}
height = {side}
steps = {steps}
scheduler = "ddim"
guidance = 2.0
token_limit = 48
microbatch = 8
"""
WAIT_S = 120


def main(tiny: bool) -> None:
    images = 16 if tiny else 48  # of each model
    with farm() as the_farm, tempfile.TemporaryDirectory() as folder:
        settings = the_farm.settings.model_copy(update={"catalog": write_catalog(Path(folder), tiny)})
        names = ["first", "second", "third"]
        with the_farm.api(settings) as url, the_farm.control(settings):
            database = connect(settings, pool=1)
            key, since = the_farm.key(database), load.now(database)
            for name in names * (images // 8):
                load.submit(url, key, 8, model=name)
            with the_farm.worker(settings, "cpu" if tiny else "cuda", TORCH_THREADS="1"):
                load.wait_until_done(database, WAIT_S)
            figures: dict[str, Any] = load.steady(database, since)
            show({"models": len(names), "images": load.stored(database, since), **figures})
            database.dispose()


def write_catalog(folder: Path, tiny: bool) -> Path:
    entries = [ENTRY.format(name="third", source=MINI, side=128, steps=4 if tiny else 20)]
    if tiny:
        entries += [ENTRY.format(name=name, source=MINI, side=128, steps=4) for name in ("first", "second")]
    else:
        from bench.harness import random_model  # imports torch

        random_model.write(folder)
        large = {"source": folder / random_model.NAME, "side": 512, "steps": 20}
        entries += [ENTRY.format(name=name, **large) + "safety_checker = false\n" for name in ("first", "second")]
    file = folder / "catalog.toml"
    file.write_text('default = "first"\n' + "".join(entries))
    return file


def show(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # cleans up
    main("--tiny" in sys.argv)
