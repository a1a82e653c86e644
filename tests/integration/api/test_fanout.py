"""The bench of streams, with a few readers: what one run leaves behind is no concern of the next."""

from bench.cases.fanout import run
from bench.harness.farm import farm


def test_readers_are_sent_the_end_in_every_run() -> None:
    """In each, fewer images are rendered than wait."""
    with farm() as the_farm:
        for _ in range(2):
            figures = run(the_farm, readers=20, microbatches=1, many=True)
            assert figures["image received after, p99 ms"] > 0
