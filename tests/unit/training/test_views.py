"""The judge of pictures with several objects, and of those that must lack something, is right about true drawings."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from training import heldout, views
from training.captions import caption
from training.drawing import draw
from training.judge import look
from training.views import Case, freely_worded, held_out
from training.world import CORNERS, Scene, draw_scene


def shown(case: Case, scene: Scene) -> bool:
    return case.is_shown(look(draw(scene, random.Random(1))))


def test_it_is_right_about_true_drawings() -> None:
    cases = held_out(36)
    assert min(views.rates(cases, views.ground_truth(cases)).values()) >= 0.95


def test_so_it_is_about_what_the_free_wordings_say() -> None:
    said = [case for case in freely_worded() if not case.not_colour and not case.not_background]
    drawn = [replace(case, scene=replace(case.scene, place=some_place(case))) for case in said]
    assert min(views.rates(said, views.ground_truth(drawn)).values()) >= 0.95


def some_place(case: Case) -> str | None:
    return CORNERS[0] if case.scene.place == views.CORNER else case.scene.place


def pair(one: str, other: str, place: str | None = None) -> Scene:
    colours = {"star": "red", "heart": "blue"}
    return Scene(one, colours[one], None, None, place, other, colours[other])


@pytest.mark.parametrize(
    ("said", "other"),
    [
        (Scene("star", "red", number="two"), Scene("star", "red", number="three")),
        (Scene("star", "red", number="two"), Scene("star", "red")),
        (Scene("star", "red"), Scene("star", "red", number="two")),
        (Scene("star", "red", number="two"), Scene("star", "blue", number="two")),
        (Scene("star", "red", place="top-left"), Scene("star", "red", place="top-right")),
        (Scene("star", "red", place="top"), Scene("star", "red", place="top-left")),
        (Scene("star", "red", place="top"), Scene("star", "red")),
        (pair("star", "heart"), pair("heart", "star")),
        (pair("star", "heart"), pair("star", "heart", "top")),
        (pair("star", "heart", "top"), pair("star", "heart")),
        (pair("star", "heart", "top"), pair("star", "heart", "bottom")),
        (Scene(None, None, "night"), Scene("moon", None, "night")),
        (Scene(None, None, "night"), Scene(None, None, "meadow")),
        (Scene("star", "red"), Scene("star", "red", "yellow")),
    ],
)
def test_another_picture_is_called_wrong(said: Scene, other: Scene) -> None:
    case = Case("", "", said)
    assert shown(case, said)
    assert not shown(case, other)


def test_what_is_excluded_may_not_be_there() -> None:
    case = Case("negation", "不是红色的圆", Scene("circle"), not_colour="red")
    assert shown(case, Scene("circle", "blue"))
    assert not shown(case, Scene("circle", "red"))
    case = Case("negation", "黑猫，背景不要白色", Scene("cat", "black"), not_background="white")
    assert shown(case, Scene("cat", "black", "blue"))
    assert not shown(case, Scene("cat", "black"))


def test_any_corner_is_a_corner() -> None:
    case = Case("place", "角落里有一颗红星", Scene("star", "red", place=views.CORNER))
    assert [shown(case, Scene("star", "red", place=place)) for place in (*CORNERS, "top", "left")] == [True] * 4 + [
        False
    ] * 2


def test_there_are_sixty_wordings_of_what_is_new_and_no_prompt_twice() -> None:
    prompts = [case.prompt for case in freely_worded()]
    assert len(prompts) == len(set(prompts))
    kinds = Counter(case.kind for case in freely_worded())
    assert kinds.keys() == {"plain", "number", "place", "pair", "negation", "english", "traditional"}
    assert sum(count for kind, count in kinds.items() if kind != "plain") >= 60


def test_training_says_none_of_the_held_out_sentences() -> None:
    rng = random.Random(3)
    said = {caption(draw_scene(rng), rng) for _ in range(3000)}
    prompts = [case.prompt for case in held_out(60)]
    assert len(set(prompts)) > 250
    assert not said & set(prompts)
    assert {case.kind for case in held_out(1)} == set(heldout.KINDS)
