"""`python -m tests.outages [--seconds 120] [--only redis_full,s3_silent]`: what each process held, a table in Markdown.

Each cell: before → settled → most of all → at the end of the outage → after it. Exit code 1 when something grew.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.outages.farm import OUTAGES
from tests.outages.measure import NAMES, Story, observe
from tests.outages.users import used_farm


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.outages", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--recovery", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=20)
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(OUTAGES))
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args(arguments)
    grown = False
    with used_farm(given.home, given.warm_up) as (farm, users):
        print(f"| outage | process | {' | '.join(NAMES)} | grew | stayed |")
        print("|---|---|" + "---|" * (len(NAMES) + 2), flush=True)
        for name in given.only:
            for process, story in observe(farm, OUTAGES[name], given.seconds, given.recovery).items():
                print(f"| {name} | {process} | {row(story)} |", flush=True)
                grown |= bool(story.growth() or story.remains())
            print(f"{name}: {dict(users.counts)}", file=sys.stderr, flush=True)  # what was answered meanwhile
            users.counts.clear()
    return int(grown)


def row(story: Story) -> str:
    cells = [" → ".join(str(getattr(held, name)) for held in story) for name in NAMES]
    return " | ".join([*cells, named(story.growth()), named(story.remains())])


def named(excess: dict[str, int]) -> str:
    return ", ".join(f"{name} +{value}" for name, value in excess.items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
