"""A batch from its file of prompts to its last image: checked, expanded, rendered, paused, cancelled, interrupted."""

from dataclasses import replace

import pytest

from common.batches import chunks, expansion
from common.batches import failures as batch_failures
from common.batches import lifecycle as batches
from common.batches.plan import Plan
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.enums import ImageState, Tier
from common.errors import Conflict, NotFound
from common.storage import upload_key
from tests.support.batch_stories import PLAN, PROMPTS, BatchStory
from tests.support.stories import CATALOG, Story
from worker.control import batch_expander
from worker.control.batch_expander import Expander


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 6)  # three prompts
    monkeypatch.setattr(batch_expander, "CHECK_PROMPTS", 4)
    monkeypatch.setattr(batches, "SETTLE_IMAGES", 6)


def test_a_file_of_prompts_becomes_jobs_in_its_order(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.expanded()
    batch, jobs = farm.batch(batch_id), farm.jobs_of(batch_id)
    assert (batch.state, batch.prompts, batch.jobs, batch.images) == ("running", 10, 10, 20)
    assert [job.recipe["prompt"] for job in jobs] == PROMPTS
    assert [job.recipe["seeds"] for job in jobs] == [[100 + 2 * n, 101 + 2 * n] for n in range(10)]
    assert {(job.tier, job._mapping["count"], job.open, job.model) for job in jobs} == {("bulk", 2, 2, "mini-zh")}
    assert farm.count("images") == 20
    assert [lane.open for lane in farm.lanes_of(batch_id)] == [20]


def test_its_images_are_claimed_and_its_lanes_count_how_they_end(farm: BatchStory) -> None:
    batch_id = farm.expanded()
    farm.publish(farm.started(capacity=8))
    failed = farm.started(capacity=8)
    farm.publish(failed, ImageState.FAILED, error_code="nan_image", error_message="no numbers")
    farm.publish(farm.started(capacity=2), ImageState.FLAGGED)
    (lane,) = farm.lanes_of(batch_id)
    assert (lane.open, lane.stored, lane.failed, lane.flagged, lane.cancelled) == (2, 8, 8, 2, 0)
    assert farm.end() == []
    farm.publish(farm.started(capacity=8))
    assert farm.end() == [batch_id]
    assert farm.batch(batch_id).state == "ended"


def test_lines_may_have_more_fields_than_a_prompt(farm: BatchStory) -> None:
    plan = Plan(defaults={"model": "mini-zh", "steps": 2, "width": 64, "height": 64}, images_per_prompt=3, seed=7)
    batch_id = farm.batch_of_lines(
        {"prompt": "红色的圆形"},
        "",
        {"prompt": "绿色的圆形", "steps": 3, "seed": 5},
        {"prompt": "蓝色的圆形", "seeds": [9]},
        plan=plan,
    )
    farm.expander.work(batch_id, 60)
    recipes = [job.recipe for job in farm.jobs_of(batch_id)]
    assert [(recipe["steps"], recipe["seeds"]) for recipe in recipes] == [(2, [7, 8, 9]), (3, [5, 6, 7]), (2, [9])]
    assert [lane.open for lane in farm.lanes_of(batch_id)] == [4, 3]


def test_prompts_that_a_model_cannot_read_are_counted(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.expanded(["红色的圆形", "红色的圆形🦊", *["红色的圆形"] * 5, "蓝色的圆形🐼"])
    batch = farm.batch(batch_id)
    assert (batch.warned, batch.jobs) == (2, 8)
    assert [warning[:6] for warning in batch.warnings] == ["Line 2", "Line 8"]
    assert "cannot read 🦊" in batch.warnings[0]


def test_any_text_is_copied_as_it_is(farm: BatchStory) -> None:
    """COPY has a syntax for backslashes, tabs and newlines."""
    texts = ["红\\n\\N\\.", "红\t色\r的", '红"色"的\n圆形', "\\", "红\\t\u2028🦊"]
    batch_id = farm.batch_of_lines(*({"prompt": one} for one in texts))
    assert not farm.expander.work(batch_id, 60)
    assert [job.recipe["prompt"] for job in farm.jobs_of(batch_id)] == texts


def test_wrong_lines_are_named_before_anything_is_expanded(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of_lines(
        {"prompt": "红色的圆形"},
        {"prompt": "红" * 600},
        '{"prompt": ',
        "7",
        {"prompt": "红色的圆形", "step": 3},
        {"prompt": " "},
    )
    assert not farm.expander.work(batch_id, 60)
    batch = farm.batch(batch_id)
    assert (batch.state, batch.error_code, batch.jobs) == ("ended", "invalid", 0)
    assert "Line 2: prompt has 602 tokens; mini-zh reads at most" in batch.error_message
    assert (
        'Line 3: it is not JSON; write an object such as {"prompt": "…"}. Line 4: it is not a JSON object; '
        in batch.error_message
    )
    assert farm.count("jobs") == 0


@pytest.mark.parametrize("data", [b"", b"\n \n\n", b"\xff\xfe\x00"])
def test_a_file_without_prompts_is_refused(farm: BatchStory, data: bytes) -> None:
    upload = farm.upload(data)
    with transaction(farm.database) as connection:
        batch_id = batches.submit(connection, farm.tenant(), upload, PLAN)
    farm.expander.work(batch_id, 60)
    batch = farm.batch(batch_id)
    assert (batch.state, batch.error_code) == ("ended", "invalid")
    assert batch.error_message in ("Its file has no prompts.", "Line 1: it is not UTF-8; save the file as UTF-8.")


def test_a_file_that_is_gone_ends_its_batch(farm: BatchStory) -> None:
    batch_id = farm.batch_of()
    upload = farm.batch(batch_id).upload_id
    farm.storage.delete([upload_key(upload, "txt")])
    farm.expander.work(batch_id, 60)
    assert "not in the image store any more" in farm.batch(batch_id).error_message


def test_a_file_refused_late_in_its_check_is_not_expanded(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of_lines(*({"prompt": one} for one in PROMPTS), {"prompt": " "})
    for _ in range(2):
        assert farm.expander.work(batch_id, 1e-9)
    assert (farm.batch(batch_id).state, farm.batch(batch_id).prompts) == ("checking", 8)
    assert not farm.expander.work(batch_id, 60)
    assert (farm.batch(batch_id).state, farm.batch(batch_id).error_code) == ("ended", "invalid")
    assert farm.count("images") == 0
    assert farm.claim() is None


@pytest.mark.parametrize("is_file_gone", [False, True])
def test_nothing_is_claimed_of_a_batch_refused_during_its_expansion(
    farm: BatchStory, settings: Settings, small_chunks: None, is_file_gone: bool
) -> None:
    """The catalogue loses a model between check and expansion, or the file is lost."""
    models = CATALOG.models | {"former": replace(CATALOG.models["mini-zh"], name="former")}
    earlier = Expander(farm.database, farm.storage, Broker(settings), replace(CATALOG, models=models))
    batch_id = farm.batch_of_lines(*({"prompt": one} for one in PROMPTS[:7]), {"prompt": "圆", "model": "former"})
    while farm.batch(batch_id).jobs < 6:
        assert earlier.work(batch_id, 1e-9)
    farm.publish(farm.started(capacity=1))
    running, held = farm.started(capacity=1), farm.claim(capacity=1)
    if is_file_gone:
        farm.storage.delete([upload_key(farm.batch(batch_id).upload_id, "jsonl")])

    assert farm.expander.work(batch_id, 1e-9)  # it is refused; its jobs are not settled yet
    batch = farm.batch(batch_id)
    assert (batch.cancelled_at is not None, batch.error_code, batch.jobs) == (True, "invalid", 6)
    assert ("not in the image store" if is_file_gone else "Line 8: ") in batch.error_message
    assert farm.claim(capacities={"mini-zh": 8, "former": 8}) is None
    assert farm.start(held) == frozenset()
    farm.release(held)
    assert farm.claim() is None
    with pytest.raises(Conflict, match="was cancelled"):
        farm.resume(batch_id)

    assert not farm.expander.work(batch_id, 60)
    assert farm.publish(running).images == frozenset()
    states = [image.state for image in farm.images_of(batch_id)]
    assert states == [ImageState.STORED] + [ImageState.CANCELLED] * 11
    assert {job.state for job in farm.jobs_of(batch_id)} == {"cancelled"}
    assert (farm.end(), farm.claim()) == ([batch_id], None)
    assert farm.balances()


def test_an_overtaken_worker_refuses_nothing(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of()
    while not farm.batch(batch_id).jobs:
        farm.expander.work(batch_id, 1e-9)
    with transaction(farm.database) as connection:
        seen = chunks.read_batch(connection, batch_id)
    farm.expander.work(batch_id, 1e-9)  # the other one, faster
    with transaction(farm.database) as connection:
        assert not batch_failures.refuse(connection, seen, "invalid", "too late")
    farm.expander.work(batch_id, 60)
    with transaction(farm.database) as connection:
        seen = chunks.read_batch(connection, batch_id)
        assert not batch_failures.refuse(connection, seen, "invalid", "too late")  # it is expanded
    batch = farm.batch(batch_id)
    assert (batch.state, batch.error_code, batch.jobs) == ("running", None, 10)
    assert [lane.closed for lane in farm.lanes_of(batch_id)] == [False]


def test_another_control_worker_continues_where_one_stopped(farm: BatchStory, small_chunks: None) -> None:
    """At whatever chunk the first one is killed: the time is up after each."""
    batch_id, turns = farm.batch_of(), 0
    while farm.expander.work(batch_id, 1e-9) and turns < 20:
        turns += 1
        if turns == 2:
            assert farm.batch(batch_id).state == "checking"
    assert turns >= 6
    assert [job.recipe["prompt"] for job in farm.jobs_of(batch_id)] == PROMPTS


def test_another_control_worker_continues_a_matrix(farm: BatchStory, small_chunks: None) -> None:
    """No prompt is left with half of its variants, at whatever chunk a worker is killed."""
    plan = Plan(defaults={"model": "mini-zh"}, matrix={"steps": [2, 3, 4]}, images_per_prompt=1, seed=100)
    batch_id, jobs = farm.batch_of(plan=plan), []
    while farm.expander.work(batch_id, 1e-9):
        jobs = [(job.recipe["prompt"], job.recipe["steps"]) for job in farm.jobs_of(batch_id)]
        assert len(jobs) % 3 == 0
    batch = farm.batch(batch_id)
    assert (batch.state, batch.prompts, batch.jobs, batch.images) == ("running", 10, 30, 30)
    made = [
        (job.position, job.recipe["prompt"], job.recipe["steps"], job.recipe["seeds"]) for job in farm.jobs_of(batch_id)
    ]
    assert made == [
        (3 * place + variant, prompt, steps, [100 + place])
        for place, prompt in enumerate(PROMPTS)
        for variant, steps in enumerate((2, 3, 4))
    ]
    assert [lane.open for lane in farm.lanes_of(batch_id)] == [10, 10, 10]


def test_a_line_may_not_set_a_field_of_the_matrix(farm: BatchStory) -> None:
    plan = Plan(defaults={"model": "mini-zh"}, matrix={"steps": [2, 3]}, images_per_prompt=1, seed=0)
    batch_id = farm.batch_of_lines({"prompt": "红色的圆形🦊"}, {"prompt": "红色的圆形", "steps": 4}, plan=plan)
    farm.expander.work(batch_id, 60)
    assert farm.batch(batch_id).error_message == "Line 2: steps is in the matrix, which sets it for all prompts."


def test_a_prompt_has_one_warning_for_all_variants(farm: BatchStory) -> None:
    plan = Plan(defaults={"model": "mini-zh"}, matrix={"steps": [2, 3]}, images_per_prompt=1, seed=0)
    batch_id = farm.expanded(["红色的圆形", "红色的圆形🦊"], plan=plan)
    batch = farm.batch(batch_id)
    assert (batch.warned, [warning[:6] for warning in batch.warnings]) == (1, ["Line 2"])


def test_two_at_once_expand_nothing_twice(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of()
    while not farm.batch(batch_id).checked_at:
        farm.expander.work(batch_id, 1e-9)
    with transaction(farm.database) as connection:
        seen = chunks.read_batch(connection, batch_id)
    farm.expander.work(batch_id, 1e-9)  # the other one, faster
    with farm.expander._chunks(seen) as found, transaction(farm.database) as connection:
        chunk, rows = next(found)
        assert not expansion.expand(connection, seen, chunk, rows)
    assert len(farm.jobs_of(batch_id)) == farm.batch(batch_id).jobs == 3


def test_a_paused_batch_waits_and_others_are_claimed(farm: BatchStory) -> None:
    batch_id, other = farm.expanded(), farm.submit(tier=Tier.BULK)
    farm.pause(batch_id)
    assert farm.batch(batch_id).state == "paused"
    assert {image.job_id for image in farm.started().images} == {other}
    assert farm.claim() is None
    assert farm.resume(batch_id) == ["mini-zh"]
    assert farm.batch(batch_id).state == "running"
    assert len(farm.started(capacity=8).images) == 8


def test_what_was_claimed_before_a_pause_is_not_started_after_it(farm: BatchStory) -> None:
    batch_id = farm.expanded()
    microbatch = farm.claim()
    farm.pause(batch_id)
    assert farm.start(microbatch) == frozenset()
    farm.release(microbatch)
    farm.resume(batch_id)
    assert {image.attempts for image in farm.claim().images} == {0}


def test_a_batch_paused_early_is_expanded_but_not_rendered(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of()
    farm.pause(batch_id)
    farm.expander.work(batch_id, 60)
    assert (farm.batch(batch_id).state, farm.batch(batch_id).jobs) == ("paused", 10)
    assert farm.claim() is None


def test_cancelling_closes_at_once_and_settles_in_chunks(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.expanded()
    running, held = farm.started(capacity=2), farm.claim(capacity=2)
    stored = farm.started(capacity=1)
    farm.publish(stored)  # half of a job, which runs on without a lease
    assert len(farm.cancel_batch(batch_id)) == 3
    assert farm.claim() is None
    assert farm.start(held) == frozenset()
    assert farm.publish(running).images == frozenset()
    assert farm.rows("SELECT FROM jobs WHERE state = 'running'") == []
    assert not farm.end()
    with transaction(farm.database) as connection:
        assert batches.settle(connection, batch_id)
    assert not farm.expander.work(batch_id, 60)
    assert farm.end() == [batch_id]
    assert {job.state for job in farm.jobs_of(batch_id)} == {"cancelled"}
    (lane,) = farm.lanes_of(batch_id)
    assert (lane.open, lane.stored, lane.cancelled) == (0, 1, 19)


def test_a_batch_cancelled_early_is_not_expanded_further(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.batch_of()
    while not farm.batch(batch_id).jobs:
        farm.expander.work(batch_id, 1e-9)
    farm.cancel_batch(batch_id)
    assert not farm.expander.work(batch_id, 60)
    assert [job.state for job in farm.jobs_of(batch_id)] == ["cancelled"] * 3
    assert farm.end() == [batch_id]


def test_an_ended_batch_cannot_be_changed(farm: BatchStory) -> None:
    batch_id = farm.expanded(["红色的圆形"])
    farm.publish(farm.started())
    farm.end()
    for change in (farm.pause, farm.resume, farm.cancel_batch):
        with pytest.raises(Conflict, match="has ended"):
            change(batch_id)
    cancelled = farm.expanded()
    farm.cancel_batch(cancelled)
    farm.cancel_batch(cancelled)
    with pytest.raises(Conflict, match="was cancelled"):
        farm.resume(cancelled)


def test_a_tenant_changes_only_its_own_batches(farm: BatchStory) -> None:
    batch_id = farm.expanded(tenant="another")
    for change in (farm.pause, farm.resume, farm.cancel_batch):
        with pytest.raises(NotFound):
            change(batch_id)
    upload = farm.upload(b"x", tenant="another")
    with pytest.raises(NotFound), transaction(farm.database) as connection:
        batches.submit(connection, farm.tenant(), upload, PLAN)


def test_stalled_batches_are_found(farm: BatchStory) -> None:
    batch_id, done = farm.batch_of(), farm.expanded()
    with transaction(farm.database) as connection:
        assert batches.stalled(connection, 3600) == []
        assert batches.stalled(connection, -1) == [batch_id]
    farm.close(done)  # and its control worker was killed
    with transaction(farm.database) as connection:
        assert batches.stalled(connection, -1) == [batch_id, done]
    farm.expander.work(batch_id, 60)
    farm.expander.work(done, 60)
    with transaction(farm.database) as connection:
        assert batches.stalled(connection, -1) == []
