"""Templates in a batch: its prompts, their positions and seeds, at whatever moment a control worker is killed."""

import json
import tracemalloc
from typing import Any

import pytest

from common.batches import lifecycle as batches
from common.batches import templates
from common.batches.plan import Plan
from common.config import Settings
from common.db import transaction
from common.recipes.prompt_templates import Templates
from tests.support.batch_stories import BatchStory
from tests.support.stories import Story
from worker.control import batch_expander

LINES = ["{红|蓝}色的{圆形|正方形}", "绿色的星形", "__颜色__的月亮", "{黑|白|灰}色的猫"]
MADE = [
    *("红色的圆形", "红色的正方形", "蓝色的圆形", "蓝色的正方形", "绿色的星形"),
    *("橙色的月亮", "紫色的月亮", "黑色的猫", "白色的猫", "灰色的猫"),
]
TEMPLATES = Templates(wildcards={"颜色": ["橙色", "紫色"]})
LOOK = {"model": "mini-zh", "steps": 2}


@pytest.fixture
def farm(story: Story, settings: Settings) -> BatchStory:
    return BatchStory(story, settings)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 6)
    monkeypatch.setattr(batch_expander, "CHECK_PROMPTS", 3)


def plan(**fields: Any) -> Plan:
    return Plan(**{"defaults": LOOK, "images_per_prompt": 2, "seed": 100, "template": TEMPLATES, **fields})


def prompts_of(farm: BatchStory, batch_id: Any) -> list[str]:
    return [job.recipe["prompt"] for job in farm.jobs_of(batch_id)]


def test_each_combination_has_a_position_and_seeds_of_its_own(farm: BatchStory, small_chunks: None) -> None:
    batch_id = farm.expanded(LINES, plan=plan())
    batch, jobs = farm.batch(batch_id), farm.jobs_of(batch_id)
    assert (batch.prompts, batch.jobs, batch.images, batch.counted, batch.warned) == (10, 10, 20, 20, 0)
    assert prompts_of(farm, batch_id) == MADE
    assert [job.position for job in jobs] == list(range(10))
    assert [job.recipe["seeds"] for job in jobs] == [[100 + 2 * n, 101 + 2 * n] for n in range(10)]
    assert batch.needs_code == 9
    assert [job.origin for job in jobs[3:6]] == [
        {"row": 1, "template_vars": {"1": "蓝", "2": "正方形"}},
        {"row": 2},
        {"row": 3, "template_vars": {"颜色": "橙色"}},
    ]


def test_the_variants_of_a_combination_are_adjacent_and_share_its_seeds(farm: BatchStory, small_chunks: None) -> None:
    both = plan(matrix={"steps": [2, 3]}, images_per_prompt=1)
    made = [(job.recipe["prompt"], job.recipe["steps"], job.recipe["seeds"][0]) for job in jobs_of(farm, LINES, both)]
    assert made == [(text, steps, 100 + at) for at, text in enumerate(MADE) for steps in (2, 3)]


def jobs_of(farm: BatchStory, lines: list[str], plan: Plan) -> list[Any]:
    return farm.jobs_of(farm.expanded(lines, plan=plan))


def test_another_control_worker_continues_at_the_next_line(farm: BatchStory, small_chunks: None) -> None:
    """At whatever chunk the first one is killed, no line is left with a part of its prompts."""
    batch_id, turns = farm.batch_of(LINES, plan()), 0
    while farm.expander.work(batch_id, 1e-9) and turns < 30:
        turns += 1
        assert len(farm.jobs_of(batch_id)) in (0, 4, 5, 7, 10)
    assert turns >= 5
    assert prompts_of(farm, batch_id) == MADE
    assert [job.position for job in farm.jobs_of(batch_id)] == list(range(10))


def test_samples_are_the_same_for_the_same_seed_whatever_is_skipped(farm: BatchStory, small_chunks: None) -> None:
    sampled = plan(template=Templates(samples=5), skip_bad=True)
    first = [job.recipe["prompt"] for job in jobs_of(farm, [LINES[0], LINES[3]], sampled)]
    assert len(first) == 10
    assert set(first) <= set(MADE)
    again = [job.recipe["prompt"] for job in jobs_of(farm, ["{", LINES[0], LINES[3]], sampled)]
    assert again == first
    other = [
        job.recipe["prompt"] for job in jobs_of(farm, [LINES[0], LINES[3]], sampled.model_copy(update={"seed": 1}))
    ]
    assert other != first


def test_the_same_row_has_the_same_samples_in_a_file_of_any_format(farm: BatchStory) -> None:
    """And another row with the same template has others, by what it keeps."""
    sampled, made = plan(template=Templates(samples=8), keep="all"), {}
    rows = [{"prompt": "{红|蓝}色的{圆形|月亮}", "guidance": 3, "id": n} for n in (1, 2)]
    table = "guidance,id,prompt\n" + "".join(f"{row['guidance']},{row['id']},{row['prompt']}\n" for row in rows)
    for format, data in (("jsonl", "\n\n" + "\n".join(map(json.dumps, rows))), ("csv", table)):
        upload = farm.upload(data.encode(), format)
        with transaction(farm.database) as connection:
            made[format] = batches.submit(connection, farm.tenant(), upload, sampled)
        farm.expander.work(made[format], 60)
    assert prompts_of(farm, made["jsonl"]) == prompts_of(farm, made["csv"])
    assert [job.origin["row"] for job in farm.jobs_of(made["csv"])[::8]] == [2, 3]
    assert prompts_of(farm, made["csv"])[:8] != prompts_of(farm, made["csv"])[8:]


def test_a_wrong_template_is_a_wrong_line(farm: BatchStory) -> None:
    lines = ["红色的圆形", "{红|蓝", "__没有__", "{|红}", "{红|" + "蓝" * 50 + "}"]
    batch_id = farm.batch_of(lines, plan())
    farm.expander.work(batch_id, 60)
    message = farm.batch(batch_id).error_message
    for said in (
        "Line 2: prompt opens a choice at '{红|蓝'",
        "Line 3: prompt names the wildcard '没有'",
        "Line 4: prompt is empty.",
        "Line 5: prompt has 52 tokens",
    ):
        assert said in message, message
    skipping = farm.expanded(lines, plan=plan(skip_bad=True))
    assert (farm.batch(skipping).prompts, farm.batch(skipping).skipped) == (1, 4)
    assert prompts_of(farm, skipping) == ["红色的圆形"]


def test_too_many_combinations_are_refused_with_their_number_before_any_is_made(farm: BatchStory) -> None:
    ten = "{" + "|".join("红橙黄绿青蓝紫黑白灰") + "}"
    tracemalloc.start()
    batch_id = farm.batch_of([ten * 6, ten * 90], plan(images_per_prompt=1))
    farm.expander.work(batch_id, 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = farm.batch(batch_id).error_message
    assert "Line 1: prompt makes 1,000,000 prompts, 1,000,000 pictures in all, and one row at most 16,384" in message
    assert "Line 2: prompt makes more than 1,000,000,000,000,000 prompts" in message
    assert "`--template-samples N`" in message
    assert peak < 20_000_000
    few = farm.expanded([ten * 6], plan=plan(template=Templates(samples=30), images_per_prompt=1))
    assert farm.batch(few).jobs == 30


def test_a_line_may_make_as_many_pictures_as_the_limit(farm: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all variants of all its prompts."""
    wanted = plan(matrix={"guidance": [2, 3]})
    monkeypatch.setattr(templates, "MAX_LINE_IMAGES", 16)
    assert farm.batch(farm.expanded(LINES[:1], plan=wanted)).images == 16
    monkeypatch.setattr(templates, "MAX_LINE_IMAGES", 15)
    refused = farm.batch_of(LINES[:1], wanted)
    farm.expander.work(refused, 60)
    assert "makes 4 prompts, 16 pictures in all, and one row at most 15" in farm.batch(refused).error_message


def test_the_largest_line_takes_bounded_memory(farm: BatchStory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_LINE_CHARACTERS", 100_000)
    long = "{红|蓝}" * 10 + "的圆形，" * 20
    batch_id = farm.batch_of([long], plan(images_per_prompt=1, defaults={"model": "zh-v0", "steps": 2}))
    farm.expander.work(batch_id, 60)
    assert "makes 1,024 prompts of up to" in farm.batch(batch_id).error_message


def test_without_the_option_a_template_is_text_and_warned_of(farm: BatchStory) -> None:
    lines = ["{红|蓝}色的圆形", "__颜色__的圆形", "红色的圆形<lora:ink:0.8>", "红色的圆形"]
    batch_id = farm.expanded(lines, plan=plan(template=None))
    assert prompts_of(farm, batch_id) == lines
    batch = farm.batch(batch_id)
    assert (batch.warned, batch.needs_code) == (3, 1)
    for line, option in enumerate(("batch submit --template", "batch submit --template", "--lora ink:0.8"), 1):
        assert batch.warnings[line - 1].startswith(f"Line {line}: ")
        assert option in batch.warnings[line - 1]
    assert farm.batch(farm.expanded([r"\{红|蓝\}色的圆形"], plan=plan())).warned == 0
