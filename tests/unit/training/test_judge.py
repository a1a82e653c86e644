"""The judge of mini-zh's images is right about images of which it is known what they show."""

import json
import random
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from training.drawing import draw
from training.evaluate import Case, ground_truth, held_out_cases, main, rates, read_cases
from training.judge import judge
from training.world import SHAPES, Scene


def test_it_is_right_about_true_drawings() -> None:
    cases = held_out_cases(240)
    found = rates(cases, ground_truth(cases))
    assert found["background"] == 1
    assert found["colour"] >= 0.99
    assert found["shape"] >= 0.99


def test_it_knows_every_shape_wherever_it_is_and_however_large() -> None:
    rng = random.Random(1)
    for shape in SHAPES:
        for size, place in ((None, None), ("big", None), ("small", "left"), (None, "bottom")):
            verdict = judge(draw(Scene(shape, "red", "grey", size, place), rng))
            assert (verdict.shape, verdict.colour, verdict.background) == (shape, "red", "grey")


def test_a_wrong_picture_is_called_wrong() -> None:
    image = draw(Scene("star", "red", "blue"), random.Random(1))
    assert Case("", "red", "blue", "star").is_right(judge(image))["joint"]
    for wrong in (Case("", "green", "blue", "star"), Case("", "red", None, "star"), Case("", "red", "blue", "sun")):
        assert not wrong.is_right(judge(image))["joint"]


def test_an_empty_picture_shows_nothing() -> None:
    verdict = judge(np.full((128, 128, 3), 250, np.uint8))
    assert (verdict.shape, verdict.colour, verdict.background) == (None, None, "white")


def test_the_held_out_prompts_are_many_different_ones() -> None:
    cases = held_out_cases(240)
    assert len({case.prompt for case in cases}) > 230
    assert {case.shape for case in cases} == set(SHAPES) - {"no-entry"}
    assert not [case for case in cases if "\ue000" <= max(case.prompt) <= "\ue0ff"]


def test_somebody_elses_list_is_read_either_way(tmp_path: Path) -> None:
    rows = [
        {"prompt": "红圆", "object": "red", "background": None, "shape": "circle"},
        {"prompt": "蓝底白猫", "object": "white", "background": "blue", "shape": "cat"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    assert read_cases(tmp_path / "list.json") == read_cases(tmp_path / "lines.jsonl")
    assert read_cases(tmp_path / "list.json")[1] == Case("蓝底白猫", "white", "blue", "cat")


def test_mini_zh_is_evaluated_on_somebody_elses_list(tmp_path: Path) -> None:
    """The last two are wrong on purpose: no such image, no such colour."""
    rows = [
        {"prompt": "红色的圆形", "object": "red", "background": None, "shape": "circle"},
        {"prompt": "蓝底白心", "object": "white", "background": "blue", "shape": "heart"},
        {"prompt": "绿色三角形", "object": "green", "background": "yellow", "shape": "square"},
        {"prompt": "黄色的星星", "object": "navy", "background": "white", "shape": "star"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows), "utf-8")
    done = CliRunner().invoke(main, ["--prompts", str(tmp_path / "list.json"), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["prompts"] == 4
    assert {name: found[name] for name in ("colour", "background", "shape", "joint")} == {
        "colour": 0.75,
        "background": 0.75,
        "shape": 0.75,
        "joint": 0.5,
    }
