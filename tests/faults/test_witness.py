"""What the storm's witness makes of answers that contradict each other, and when its load submits."""

import time
from typing import Any

import pytest

from tests.faults.load import Witness, due_s

IMAGE = {"id": "i", "state": "stored", "sha256": "a"}


def job(job_state: str, **image: Any) -> dict[str, Any]:
    return {"id": "j", "state": job_state, "images": [IMAGE | image], "recipe": {"prompt": "红色的圆形"}}


@pytest.mark.parametrize(
    ("first", "then", "promise"),
    [
        (job("succeeded"), job("running"), "P5"),
        (job("succeeded"), job("succeeded", sha256="b"), "P5"),
        (job("failed"), job("succeeded"), "P5"),
        (job("cancelled", state="cancelled", sha256=None), job("cancelled"), "P7"),
        (job("cancelled"), job("running"), "P7"),
    ],
)
def test_an_end_that_changes_breaks_a_promise(first: dict[str, Any], then: dict[str, Any], promise: str) -> None:
    witness = Witness()
    witness.saw(first, time.monotonic())
    witness.saw(then, time.monotonic())
    assert list(witness.contradictions) == [promise]


def test_an_answer_to_an_older_question_is_no_contradiction() -> None:
    witness, before = Witness(), time.monotonic()
    witness.saw(job("running"), before)
    witness.saw(job("succeeded"), before)
    witness.saw(job("running"), before)
    assert not witness.contradictions


def test_two_jobs_under_one_key_break_a_promise() -> None:
    witness = Witness()
    witness.answered(job("queued"), "红", "key", "plain")
    witness.answered(job("queued"), "红", "key", "plain")
    witness.answered(job("queued") | {"id": "other"}, "黄", "key", "plain")
    assert not witness.contradictions
    witness.answered(job("queued") | {"id": "other"}, "红", "key", "plain")
    assert list(witness.contradictions) == ["P8"]


def test_usage_that_falls_breaks_a_promise() -> None:
    witness, before = Witness(), time.monotonic()
    for images in (3, 3, 7):
        witness.told_usage("红", images, time.monotonic())
    witness.told_usage("红", 5, before)  # an answer to an older question
    witness.told_usage("黄", 1, time.monotonic())
    assert not witness.contradictions
    witness.told_usage("红", 6, time.monotonic())
    assert list(witness.contradictions) == ["USE"]


def test_a_deleted_job_that_is_shown_breaks_a_promise() -> None:
    witness = Witness()
    asked_before = time.monotonic()
    witness.deleted["j"] = witness.deleted["b"] = time.monotonic()
    witness.saw(job("queued"), asked_before)
    assert not witness.contradictions
    witness.saw(job("queued") | {"id": "other", "batch_id": "b"}, time.monotonic() + 1)
    witness.saw(job("queued"), time.monotonic() + 1)
    assert {promise: len(lines) for promise, lines in witness.contradictions.items()} == {"P14": 2}


def test_submissions_go_on_for_faults_that_have_met_nobody_yet() -> None:
    assert [due_s(submitted, jobs=10, seconds=5) for submitted in (0, 5, 10, 11, 12)] == [0, 2.5, 5, 6, 7]
