"""The key of a picture: the same wherever and with whatever siblings it is drawn, another one if anything differs."""

from typing import Any
from uuid import UUID

from common.catalog.loras import LoraUse
from common.recipes.img2img import InputImage
from common.recipes.picture_key import DrawnWith, of_one
from common.recipes.recipe import Recipe

DRAWN_WITH = DrawnWith("some weights", {"ink": "a" * 64}, "a class")
INK = LoraUse(name="ink", weight=0.5)
SOURCE = InputImage(id=UUID(int=1), sha256="b" * 64, key="uploads/1", width=8, height=8)


def recipe(**fields: Any) -> Recipe:
    drawn = {"prompt": "红色的圆形", "negative_prompt": "", "model": "mini-zh", "width": 64, "height": 64, "steps": 2}
    taken = {"scheduler": "ddim", "guidance": 1.0, "seeds": (7, 8), "mode": "text2image", "format": "png"}
    return Recipe(**{**drawn, **taken, **fields})


def test_a_picture_has_one_key_whatever_its_siblings_and_the_class_of_its_worker() -> None:
    alone, with_three = recipe(seeds=(8,)), recipe(seeds=(6, 7, 8, 9))
    keys = {
        DRAWN_WITH.key(recipe(), 1),
        DRAWN_WITH.key(alone, 0),
        DRAWN_WITH.key(with_three, 2),
        DRAWN_WITH.keys(with_three)[2],
        DrawnWith("some weights", {}, "another class").key(alone, 0),
    }
    assert len(keys) == 1
    assert of_one(with_three, 2) == alone


def test_a_name_is_not_part_of_it_where_a_digest_is() -> None:
    copied = SOURCE.model_copy(update={"id": UUID(int=2), "key": "uploads/2"})
    renamed = DrawnWith("some weights", {"tusche": "a" * 64})
    assert DRAWN_WITH.key(recipe(model="another name"), 0) == DRAWN_WITH.key(recipe(), 0)
    assert DRAWN_WITH.key(recipe(source=copied), 0) == DRAWN_WITH.key(recipe(source=SOURCE), 0)
    drawn, again = recipe(lora=(INK,)), recipe(lora=(LoraUse(name="tusche", weight=0.5),))
    assert renamed.key(again, 0) == DRAWN_WITH.key(drawn, 0)


def test_whatever_decides_a_picture_gives_another_key() -> None:
    other_source = SOURCE.model_copy(update={"sha256": "c" * 64})
    drawn: list[tuple[DrawnWith, dict[str, Any]]] = [
        (DRAWN_WITH, {}),
        (DrawnWith("other weights"), {}),
        (DrawnWith(), {}),
        (DrawnWith(), {"model": "zh-v0"}),
        (DRAWN_WITH, {"lora": (INK,)}),
        (DRAWN_WITH, {"lora": (LoraUse(name="ink", weight=0.6),)}),
        (DrawnWith("some weights", {"ink": "d" * 64}), {"lora": (INK,)}),
        (DRAWN_WITH, {"source": SOURCE}),
        (DRAWN_WITH, {"source": other_source}),
        (DRAWN_WITH, {"source": SOURCE, "mask": SOURCE}),
    ]
    changed = {"prompt": "圆", "negative_prompt": "方", "width": 72, "height": 72, "steps": 3, "scheduler": "lms"}
    changed |= {"guidance": 2.0, "mode": "inpaint", "format": "webp", "strength": 0.5}
    drawn += [(DRAWN_WITH, {name: value}) for name, value in changed.items()]
    keys = [with_.key(recipe(**fields), index) for with_, fields in drawn for index in (0, 1)]
    assert len(set(keys)) == len(keys)
