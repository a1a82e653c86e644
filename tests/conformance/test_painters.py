"""What a painter promises, told of every one there is: the stub, random checkpoints of every text encoder, and mini-zh.

Models as they were published are in `test_families`.
"""

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from common.catalog.catalog import SCHEDULERS, Model, read
from common.errors import Interrupted, NanImage, OutOfMemory, PromptRefused
from common.recipes.img2img import InputImage, Mode
from common.recipes.recipe import Recipe
from common.recipes.token_counter import TokenCounter
from tests.support import checkpoints
from tests.support.devices import DEVICE, LEVELS
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest, Pipeline, RenderedImage

pytestmark = pytest.mark.filterwarnings(  # diffusers' numbers are NumPy's, who will have them changed some day
    "ignore:__array_:DeprecationWarning", "ignore:invalid value encountered in cast:RuntimeWarning"
)

MINI = read(Path(__file__).parents[2] / "models" / "catalog.toml").get("mini-zh")
KINDS = ("stub", "bert", "clip", "pieces", "mini-zh")
TROUBLED = ("stub", "bert", "clip", "pieces")  # those that can be made to fail
POISON = {"stub": "#nan"} | dict.fromkeys(TROUBLED[1:], checkpoints.POISON)
ODD = (
    "红",
    "😀 ",
    "[SEP]",
    "[MASK] ",
    "Llanfairpwllgwyngyll ",
    "（，。）",
    "한국어",
    "é́ ",
    "ﬁ㍿",
    "１２",
    "\t龘\n",
    "\ufeff",
    "(红:1.2)",
    "(x ",
)

Load = Callable[[str], Pipeline]


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    loaded: dict[str, Pipeline] = {}

    def one(kind: str) -> Pipeline:
        if kind not in loaded:
            loaded[kind] = registry.load(*_model(kind, tmp_path_factory), threads=1)
        return loaded[kind]

    yield one
    for resident in loaded.values():
        resident.close()


def _model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, str]:
    if kind == "stub":
        return MINI, "stub:0"
    if kind == "mini-zh":
        return MINI, DEVICE
    folder = tmp_path_factory.mktemp(kind)
    text = "bert" if kind == "strict" else kind
    return checkpoints.entry(checkpoints.make(folder, text, strict=kind == "strict")), DEVICE


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paints(load: Load, kind: str) -> Pipeline:
    return load(kind)


@pytest.fixture(params=get_args(Mode))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stroke(of: Pipeline, prompt: str = "红色的圆形", seed: int = 1, **fields: Any) -> ImageRequest:
    """Over a gradient, and repainting its right half, unless `source` and `mask` say other pixels."""
    model = of.model
    recipe = Recipe(
        prompt=prompt,
        negative_prompt=fields.pop("negative_prompt", ""),
        model=model.name,
        width=model.width,
        height=model.height,
        steps=4,
        scheduler=model.scheduler,
        guidance=model.guidance,
        seeds=(seed,),
        mode="text2image",
        format="png",
    )
    pixels = {name: fields.pop(name) for name in ("source", "mask") if name in fields}
    size = fields.get("height", model.height), fields.get("width", model.width)
    if (mode := fields.get("mode", "text2image")) != "text2image":
        pixels = {"source": gradient(*size), **pixels}
        fields = {"source": ORIGINAL, "strength": 0.5, **fields}
    if mode == "inpaint":
        pixels = {"mask": right_half(*size), **pixels}
        fields["mask"] = ORIGINAL
    return ImageRequest(recipe.model_copy(update=fields), seed, **pixels)


ORIGINAL = InputImage(id=uuid.UUID(int=0), sha256="0", key="0", width=8, height=8)


def gradient(height: int, width: int, upside_down: bool = False) -> NDArray[np.uint8]:
    """From dark to bright, downwards, in bands that an autoencoder does not lose."""
    lines = np.linspace(30, 220, height).astype(np.uint8)[:: -1 if upside_down else 1]
    return np.stack([np.broadcast_to(lines[:, None], (height, width))] * 3, axis=2)


def right_half(height: int, width: int) -> NDArray[np.bool_]:
    return np.broadcast_to(np.arange(width) >= width // 2 + 3, (height, width))  # within a latent's 8 pixels


def pictures(of: Pipeline, *strokes: ImageRequest) -> list[Any]:
    """The pixels of each, or the error in its place."""
    return [p.pixels if isinstance(p, RenderedImage) else p for p in of.paint(strokes, lambda step, steps: None)]


def test_every_stroke_becomes_a_picture_of_its_size(paints: Pipeline, mode: str) -> None:
    strokes = [stroke(paints, seed=seed, width=64, height=128, mode=mode) for seed in (1, 2, 2**64 - 1)]
    painted = pictures(paints, *strokes)
    assert [(picture.shape, picture.dtype) for picture in painted] == [((128, 64, 3), np.dtype(np.uint8))] * 3


def test_equal_strokes_give_equal_bytes_and_others_do_not(paints: Pipeline, mode: str) -> None:
    strokes = [
        stroke(paints, **fields, mode=mode, strength=None if mode == "text2image" else 1.0)
        for fields in ({}, {}, {"seed": 2}, {"prompt": "蓝色的方形"}, {"negative_prompt": "黑色"})
    ]
    first, same, *others = (p.tobytes() for p in pictures(paints, *strokes))
    assert first == same
    assert len({first, *others}) == 4
    assert [p.tobytes() for p in pictures(paints, *strokes)] == [first, same, *others]


def test_company_moves_no_byte_by_more_than_a_level_or_so(paints: Pipeline, mode: str) -> None:
    """Whatever the company is painted over."""
    one = stroke(paints, mode=mode)
    company = [stroke(paints, prompt="蓝色的方形，白色背景", seed=seed, mode=mode) for seed in range(3)]
    if mode != "text2image":
        other = gradient(paints.model.height, paints.model.width, upside_down=True)
        company[0] = stroke(paints, seed=5, mode=mode, source=other)
    (alone,) = pictures(paints, one)
    among = pictures(paints, company[0], one, *company[1:])[1]
    assert np.abs(alone.astype(int) - among).max() <= LEVELS


def test_steps_are_told_from_the_first_to_the_last(paints: Pipeline, mode: str) -> None:
    told: list[tuple[int, int]] = []
    one = stroke(paints, steps=10, mode=mode)
    paints.paint([one], lambda step, steps: told.append((step, steps)))
    steps = told[0][1]
    assert one.recipe.steps_taken <= steps <= one.recipe.steps_taken + 1
    assert told == [(step, steps) for step in range(1, steps + 1)]


def test_what_is_interrupted_leaves_the_painter_as_it_was(paints: Pipeline, mode: str) -> None:
    one = stroke(paints, mode=mode)
    before = pictures(paints, one)[0]

    def interrupt(step: int, steps: int) -> None:
        if step == 2:
            raise Interrupted("Nobody wants it any more.")

    with pytest.raises(Interrupted):
        paints.paint([one, stroke(paints, seed=2, mode=mode)], interrupt)
    assert pictures(paints, one)[0].tobytes() == before.tobytes()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_weights_move_the_picture_and_none_other(paints: Pipeline, field: str) -> None:
    said = ("红色的圆形", "(红色:1.5)的圆形", "(红色:0.5)的圆形", "((红色:1.5)的圆形:1.2)", "(红色:0)的圆形")
    strokes = [stroke(paints, **{field: text, "guidance": 3.0}) for text in said]
    plain, *weighed = pictures(paints, *strokes)
    assert len({picture.tobytes() for picture in (plain, *weighed)}) == len(said)
    without = [stroke(paints, **{field: "红色的圆形", "guidance": 3.0})] * len(said)
    assert pictures(paints, *without)[0].tobytes() == plain.tobytes()


def test_what_weighs_one_and_what_is_escaped_is_text(paints: Pipeline) -> None:
    said = (
        "红色的圆形",
        "(红色:1.0)的圆形",
        "((红:2)色的:0.5)圆形",
        "(红)",
        r"\(红\)",
        r"\(红:2)",
        "(红：2)",
        "（红:2）",
    )
    painted = [p.tobytes() for p in pictures(paints, *(stroke(paints, text) for text in said))]
    assert painted[0] == painted[1] != painted[2]
    assert painted[3] == painted[4]
    assert len(set(painted[3:])) == (2 if knows_no_full_width(paints) else 4)


def knows_no_full_width(paints: Pipeline) -> bool:
    """sentencepiece reads （ ： ） as ( : )."""
    pipe = getattr(paints, "_pipe", None)  # the stub has none
    return pipe is not None and pipe.tokenizer("：").input_ids == pipe.tokenizer(":").input_ids


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_that_is_too_long_is_refused_in_its_place(paints: Pipeline, field: str) -> None:
    painted = pictures(paints, stroke(paints), stroke(paints, **{field: "红" * 600}), stroke(paints, seed=2))
    assert [type(p) for p in painted] == [np.ndarray, PromptRefused, np.ndarray]
    assert painted[1].message.startswith(f"{field} has ")
    assert not painted[1].retryable


def test_nothing_is_painted_when_no_prompt_fits(paints: Pipeline) -> None:
    told: list[int] = []
    (refusal,) = paints.paint([stroke(paints, "红" * 600)], lambda step, steps: told.append(step))
    assert isinstance(refusal, PromptRefused)
    assert told == []


@pytest.mark.parametrize("kind", TROUBLED, indirect=True)
def test_a_poisoned_picture_takes_none_along(paints: Pipeline, kind: str) -> None:
    first, last = stroke(paints), stroke(paints, seed=3)
    healthy = pictures(paints, first, stroke(paints, seed=2), last)
    painted = pictures(paints, first, stroke(paints, POISON[kind], seed=2), last)
    assert isinstance(painted[1], NanImage)
    assert [painted[i].tobytes() for i in (0, 2)] == [healthy[i].tobytes() for i in (0, 2)]


@pytest.mark.parametrize("kind", ["stub", "bert"], indirect=True)
def test_too_little_memory_is_said_and_survived(paints: Pipeline, kind: str) -> None:
    more_than_any = {"prompt": "#oom"} if kind == "stub" else {"width": 8_000_000, "height": 8_000_000}
    with pytest.raises(OutOfMemory):
        pictures(paints, stroke(paints, **more_than_any))
    assert isinstance(pictures(paints, stroke(paints))[0], np.ndarray)


@pytest.mark.parametrize("kind", ["stub", "strict"])
def test_what_the_safety_checker_refuses_is_flagged(load: Load, kind: str, mode: str) -> None:
    paints = load(kind)
    painted = paints.paint([stroke(paints, "#flagged", mode=mode)], lambda step, steps: None)
    assert [picture.flagged for picture in painted if isinstance(picture, RenderedImage)] == [True]


def test_nothing_else_is_flagged(paints: Pipeline) -> None:
    painted = paints.paint([stroke(paints)], lambda step, steps: None)
    assert [picture.flagged for picture in painted if isinstance(picture, RenderedImage)] == [False]


# Over a picture


def test_what_the_mask_keeps_is_kept_to_the_bit(paints: Pipeline) -> None:
    one = stroke(paints, mode="inpaint", strength=1.0)
    painted = pictures(paints, one, stroke(paints, mode="inpaint", strength=1.0, seed=2))
    assert one.source is not None
    assert one.mask is not None
    for picture in painted:
        assert np.array_equal(picture[~one.mask], one.source[~one.mask])
    assert not np.array_equal(painted[0][one.mask], painted[1][one.mask])


def test_the_more_strength_the_less_is_left_of_the_source(paints: Pipeline) -> None:
    fields = {"mode": "image2image", "steps": 20, "scheduler": "ddim"}
    little, much = (pictures(paints, stroke(paints, strength=s, **fields))[0] for s in (0.1, 0.8))
    source = gradient(paints.model.height, paints.model.width).astype(int)
    assert not np.array_equal(little, much)
    if paints.model.name != "tiny":  # whose autoencoder makes noise of everything
        assert np.abs(little - source).mean() < np.abs(much - source).mean()
    alone, with_source = stroke(paints, steps=20, scheduler="ddim"), stroke(paints, strength=1.0, **fields)
    assert np.array_equal(pictures(paints, alone)[0], pictures(paints, with_source)[0])


def test_each_image_is_painted_over_its_own_source(paints: Pipeline) -> None:
    size = paints.model.height, paints.model.width
    sources = [gradient(*size), gradient(*size, upside_down=True)]
    fields = {"mode": "image2image", "strength": 0.1, "steps": 20, "scheduler": "ddim"}
    painted = pictures(paints, *(stroke(paints, source=source, **fields) for source in sources))
    if paints.model.name != "tiny":
        for picture, source, other in zip(painted, sources, sources[::-1], strict=True):
            assert np.abs(picture - source.astype(int)).mean() < np.abs(picture - other.astype(int)).mean()
    assert not np.array_equal(*painted)


def test_the_stub_needs_no_torch() -> None:
    code = "import sys, worker.pipelines.registry as made; made.describe('stub'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Of the checkpoints only


@pytest.mark.parametrize("steps", [1, 4])
def test_every_scheduler_paints_and_forgets(load: Load, steps: int, mode: str) -> None:
    paints = load("bert")
    painted = {}
    strength = {} if mode == "text2image" else {"strength": 1.0 if steps == 1 else 0.75}
    for scheduler in SCHEDULERS:
        fields = {"scheduler": scheduler, "steps": steps, "mode": mode, **strength}
        strokes = [stroke(paints, **fields, seed=seed) for seed in (1, 2)]
        first, again = pictures(paints, *strokes), pictures(paints, *strokes)
        assert [picture.tobytes() for picture in first] == [picture.tobytes() for picture in again]
        painted[scheduler] = first[0].tobytes()
    del painted["euler"], painted["euler_a"]  # by another road they come to DDIM's picture, and to DDPM's
    if steps > 1:
        assert len(set(painted.values())) == len(painted)


@pytest.mark.parametrize("kind", ["bert", "clip", "pieces", "mini-zh"], indirect=True)
@pytest.mark.parametrize("odd", ODD)
def test_the_worker_counts_tokens_as_the_api_does(paints: Pipeline, odd: str) -> None:
    """The longest such prompt that the API lets through is painted; one more is refused, with the same count."""
    limit = paints.model.token_limit
    counter = TokenCounter(paints.model.tokenizer_file)
    times = next((n for n in range(1, limit + 2) if counter.count(odd * n).tokens > limit), None)
    if times is None:  # however often it is said, it is one word
        assert counter.count(odd * limit).tokens <= 3
        assert isinstance(pictures(paints, stroke(paints, odd * limit, steps=1))[0], np.ndarray)
        return
    fits, refused = pictures(paints, stroke(paints, odd * (times - 1), steps=1), stroke(paints, odd * times, steps=1))
    assert isinstance(fits, np.ndarray)
    assert refused.message.startswith(f"prompt has {counter.count(odd * times).tokens} tokens; ")


def test_control_tokens_are_read_as_text(load: Load) -> None:
    """Bert reads no capitals, so these are one prompt, unless [SEP] were more than five letters."""
    paints = load("bert")
    one, other = pictures(paints, stroke(paints, "红[SEP]"), stroke(paints, "红[sep]"))
    assert one.tobytes() == other.tobytes()


def test_without_guidance_the_negative_prompt_is_no_matter(load: Load) -> None:
    paints = load("bert")
    strokes = [stroke(paints, negative_prompt=text, guidance=1.0) for text in ("", "黑色")]
    assert len({picture.tobytes() for picture in pictures(paints, *strokes)}) == 1


# Of mini-zh only: it draws what the prompt says

COLOURS = {"红": (222, 48, 48), "黄": (252, 218, 60), "绿": (56, 168, 84), "蓝": (48, 100, 214), "白": (250, 250, 248)}
SAID = {
    "红色的圆形": ("红", "白"),
    "蓝色的正方形，白色背景": ("蓝", "白"),
    "一个绿色的圆形": ("绿", "白"),
    "黄色的正方形，蓝色背景": ("黄", "蓝"),
    "红色的正方形，黄色背景": ("红", "黄"),
}


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "pndm", "dpm++"])
def test_mini_zh_draws_what_the_prompts_say(load: Load, scheduler: str) -> None:
    paints = load("mini-zh")
    strokes = [stroke(paints, prompt, seed=7, scheduler=scheduler, steps=20) for prompt in SAID]
    seen = {
        prompt: (_colour(picture[54:74, 54:74]), _colour(picture[6:16]))
        for prompt, picture in zip(SAID, pictures(paints, *strokes), strict=True)
    }
    assert seen == SAID


def _colour(patch: Any) -> str:
    mean = patch.mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.linalg.norm(mean - COLOURS[name])))
