"""The contract of `Pipeline`, for every implementation: the stub, random checkpoints of each text encoder, and mini-zh.

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

pytestmark = pytest.mark.filterwarnings(  # diffusers uses a deprecated interface of NumPy
    "ignore:__array_:DeprecationWarning", "ignore:invalid value encountered in cast:RuntimeWarning"
)

MINI = read(Path(__file__).parents[2] / "models" / "catalog.toml").get("mini-zh")
KINDS = ("stub", "bert", "clip", "pieces", "mini-zh")
CAN_FAIL = ("stub", "bert", "clip", "pieces")  # kinds for which a prompt can cause NaN
POISON = {"stub": "#nan"} | dict.fromkeys(CAN_FAIL[1:], checkpoints.POISON)
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
def pipeline(load: Load, kind: str) -> Pipeline:
    return load(kind)


@pytest.fixture(params=get_args(Mode))
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def request_for(pipeline: Pipeline, prompt: str = "红色的圆形", seed: int = 1, **fields: Any) -> ImageRequest:
    """A request in the model's defaults. The source is a gradient and the mask its right half, unless given."""
    model = pipeline.model
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
        fields = {"source": SOURCE, "strength": 0.5, **fields}
    if mode == "inpaint":
        pixels = {"mask": right_half(*size), **pixels}
        fields["mask"] = SOURCE
    return ImageRequest(recipe.model_copy(update=fields), seed, **pixels)


SOURCE = InputImage(id=uuid.UUID(int=0), sha256="0", key="0", width=8, height=8)


def gradient(height: int, width: int, upside_down: bool = False) -> NDArray[np.uint8]:
    """From dark to bright, downwards: what an autoencoder preserves."""
    lines = np.linspace(30, 220, height).astype(np.uint8)[:: -1 if upside_down else 1]
    return np.stack([np.broadcast_to(lines[:, None], (height, width))] * 3, axis=2)


def right_half(height: int, width: int) -> NDArray[np.bool_]:
    return np.broadcast_to(np.arange(width) >= width // 2 + 3, (height, width))  # within a latent's 8 pixels


def generate(pipeline: Pipeline, *requests: ImageRequest) -> list[Any]:
    """The pixels of each request, or its error."""
    results = pipeline.generate(requests, lambda step, steps: None)
    return [result.pixels if isinstance(result, RenderedImage) else result for result in results]


def test_every_request_gives_an_image_of_its_size(pipeline: Pipeline, mode: str) -> None:
    requests = [request_for(pipeline, seed=seed, width=64, height=128, mode=mode) for seed in (1, 2, 2**64 - 1)]
    rendered = generate(pipeline, *requests)
    assert [(pixels.shape, pixels.dtype) for pixels in rendered] == [((128, 64, 3), np.dtype(np.uint8))] * 3


def test_equal_requests_give_equal_bytes_and_others_do_not(pipeline: Pipeline, mode: str) -> None:
    requests = [
        request_for(pipeline, **fields, mode=mode, strength=None if mode == "text2image" else 1.0)
        for fields in ({}, {}, {"seed": 2}, {"prompt": "蓝色的方形"}, {"negative_prompt": "黑色"})
    ]
    first, same, *others = (pixels.tobytes() for pixels in generate(pipeline, *requests))
    assert first == same
    assert len({first, *others}) == 4
    assert [pixels.tobytes() for pixels in generate(pipeline, *requests)] == [first, same, *others]


def test_other_requests_in_the_call_move_no_byte_by_more_than_a_level_or_so(pipeline: Pipeline, mode: str) -> None:
    """Whatever their sources are."""
    one = request_for(pipeline, mode=mode)
    others = [request_for(pipeline, prompt="蓝色的方形，白色背景", seed=seed, mode=mode) for seed in range(3)]
    if mode != "text2image":
        other = gradient(pipeline.model.height, pipeline.model.width, upside_down=True)
        others[0] = request_for(pipeline, seed=5, mode=mode, source=other)
    (alone,) = generate(pipeline, one)
    among = generate(pipeline, others[0], one, *others[1:])[1]
    assert np.abs(alone.astype(int) - among).max() <= LEVELS


def test_on_step_is_called_from_the_first_step_to_the_last(pipeline: Pipeline, mode: str) -> None:
    calls: list[tuple[int, int]] = []
    one = request_for(pipeline, steps=10, mode=mode)
    pipeline.generate([one], lambda step, steps: calls.append((step, steps)))
    steps = calls[0][1]
    assert one.recipe.steps_taken <= steps <= one.recipe.steps_taken + 1
    assert calls == [(step, steps) for step in range(1, steps + 1)]


def test_an_interrupted_pipeline_renders_as_before(pipeline: Pipeline, mode: str) -> None:
    one = request_for(pipeline, mode=mode)
    before = generate(pipeline, one)[0]

    def interrupt(step: int, steps: int) -> None:
        if step == 2:
            raise Interrupted("No image is wanted any more.")

    with pytest.raises(Interrupted):
        pipeline.generate([one, request_for(pipeline, seed=2, mode=mode)], interrupt)
    assert generate(pipeline, one)[0].tobytes() == before.tobytes()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_weights_change_their_own_image_only(pipeline: Pipeline, field: str) -> None:
    prompts = ("红色的圆形", "(红色:1.5)的圆形", "(红色:0.5)的圆形", "((红色:1.5)的圆形:1.2)", "(红色:0)的圆形")
    requests = [request_for(pipeline, **{field: text, "guidance": 3.0}) for text in prompts]
    plain, *weighted = generate(pipeline, *requests)
    assert len({pixels.tobytes() for pixels in (plain, *weighted)}) == len(prompts)
    without = [request_for(pipeline, **{field: "红色的圆形", "guidance": 3.0})] * len(prompts)
    assert generate(pipeline, *without)[0].tobytes() == plain.tobytes()


def test_a_weight_of_one_changes_nothing_and_escaped_parentheses_are_text(pipeline: Pipeline) -> None:
    prompts = (
        "红色的圆形",
        "(红色:1.0)的圆形",
        "((红:2)色的:0.5)圆形",
        "(红)",
        r"\(红\)",
        r"\(红:2)",
        "(红：2)",
        "（红:2）",
    )
    rendered = [pixels.tobytes() for pixels in generate(pipeline, *(request_for(pipeline, text) for text in prompts))]
    assert rendered[0] == rendered[1] != rendered[2]
    assert rendered[3] == rendered[4]
    assert len(set(rendered[3:])) == (2 if folds_full_width(pipeline) else 4)


def folds_full_width(pipeline: Pipeline) -> bool:
    """sentencepiece reads （ ： ） as ( : )."""
    pipe = getattr(pipeline, "_pipe", None)  # the stub has none
    return pipe is not None and pipe.tokenizer("：").input_ids == pipe.tokenizer(":").input_ids


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_that_is_too_long_is_refused_in_its_place(pipeline: Pipeline, field: str) -> None:
    rendered = generate(
        pipeline, request_for(pipeline), request_for(pipeline, **{field: "红" * 600}), request_for(pipeline, seed=2)
    )
    assert [type(result) for result in rendered] == [np.ndarray, PromptRefused, np.ndarray]
    assert rendered[1].message.startswith(f"{field} has ")
    assert not rendered[1].retryable


def test_nothing_is_rendered_when_no_prompt_fits(pipeline: Pipeline) -> None:
    calls: list[int] = []
    (refusal,) = pipeline.generate([request_for(pipeline, "红" * 600)], lambda step, steps: calls.append(step))
    assert isinstance(refusal, PromptRefused)
    assert calls == []


@pytest.mark.parametrize("kind", CAN_FAIL, indirect=True)
def test_an_image_of_nan_changes_no_other(pipeline: Pipeline, kind: str) -> None:
    first, last = request_for(pipeline), request_for(pipeline, seed=3)
    healthy = generate(pipeline, first, request_for(pipeline, seed=2), last)
    rendered = generate(pipeline, first, request_for(pipeline, POISON[kind], seed=2), last)
    assert isinstance(rendered[1], NanImage)
    assert [rendered[i].tobytes() for i in (0, 2)] == [healthy[i].tobytes() for i in (0, 2)]


@pytest.mark.parametrize("kind", ["stub", "bert"], indirect=True)
def test_a_pipeline_works_after_it_ran_out_of_memory(pipeline: Pipeline, kind: str) -> None:
    more_than_any = {"prompt": "#oom"} if kind == "stub" else {"width": 8_000_000, "height": 8_000_000}
    with pytest.raises(OutOfMemory):
        generate(pipeline, request_for(pipeline, **more_than_any))
    assert isinstance(generate(pipeline, request_for(pipeline))[0], np.ndarray)


@pytest.mark.parametrize("kind", ["stub", "strict"])
def test_what_the_safety_checker_rejects_is_flagged(load: Load, kind: str, mode: str) -> None:
    pipeline = load(kind)
    rendered = pipeline.generate([request_for(pipeline, "#flagged", mode=mode)], lambda step, steps: None)
    assert [image.flagged for image in rendered if isinstance(image, RenderedImage)] == [True]


def test_a_score_says_whether_the_image_is_flagged(load: Load) -> None:
    """And it is the same for the same request."""
    for kind, flagged in (("stub", False), ("bert", False), ("strict", True)):
        pipeline = load(kind)
        first, again = (pipeline.generate([request_for(pipeline)], lambda step, steps: None)[0] for _ in range(2))
        assert isinstance(first, RenderedImage)
        assert isinstance(again, RenderedImage)
        assert first.score is not None
        assert first.concept in range(17)
        assert (first.flagged, first.score > 0) == (flagged, flagged)
        assert (first.score, first.concept) == (again.score, again.concept)


def test_what_cannot_be_judged_is_flagged(load: Load) -> None:
    (image,) = load("stub").generate([request_for(load("stub"), "#unchecked")], lambda step, steps: None)
    assert isinstance(image, RenderedImage)
    assert (image.flagged, image.unchecked, image.score, image.concept) == (True, True, None, None)


def test_nothing_else_is_flagged(pipeline: Pipeline) -> None:
    rendered = pipeline.generate([request_for(pipeline)], lambda step, steps: None)
    assert [image.flagged for image in rendered if isinstance(image, RenderedImage)] == [False]


# image2image and inpaint


def test_pixels_outside_the_mask_are_the_sources(pipeline: Pipeline) -> None:
    one = request_for(pipeline, mode="inpaint", strength=1.0)
    rendered = generate(pipeline, one, request_for(pipeline, mode="inpaint", strength=1.0, seed=2))
    assert one.source is not None
    assert one.mask is not None
    for pixels in rendered:
        assert np.array_equal(pixels[~one.mask], one.source[~one.mask])
    assert not np.array_equal(rendered[0][one.mask], rendered[1][one.mask])


def test_more_strength_leaves_less_of_the_source(pipeline: Pipeline) -> None:
    fields = {"mode": "image2image", "steps": 20, "scheduler": "ddim"}
    little, much = (generate(pipeline, request_for(pipeline, strength=s, **fields))[0] for s in (0.1, 0.8))
    source = gradient(pipeline.model.height, pipeline.model.width).astype(int)
    assert not np.array_equal(little, much)
    if pipeline.model.name != "tiny":  # whose random autoencoder gives noise
        assert np.abs(little - source).mean() < np.abs(much - source).mean()
    alone, with_source = (
        request_for(pipeline, steps=20, scheduler="ddim"),
        request_for(pipeline, strength=1.0, **fields),
    )
    assert np.array_equal(generate(pipeline, alone)[0], generate(pipeline, with_source)[0])


def test_each_image_has_its_own_source(pipeline: Pipeline) -> None:
    size = pipeline.model.height, pipeline.model.width
    sources = [gradient(*size), gradient(*size, upside_down=True)]
    fields = {"mode": "image2image", "strength": 0.1, "steps": 20, "scheduler": "ddim"}
    rendered = generate(pipeline, *(request_for(pipeline, source=source, **fields) for source in sources))
    if pipeline.model.name != "tiny":
        for pixels, source, other in zip(rendered, sources, sources[::-1], strict=True):
            assert np.abs(pixels - source.astype(int)).mean() < np.abs(pixels - other.astype(int)).mean()
    assert not np.array_equal(*rendered)


def test_the_stub_needs_no_torch() -> None:
    code = "import sys; from worker.pipelines.registry import *; describe('stub'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Of the checkpoints only


@pytest.mark.parametrize("steps", [1, 4])
def test_every_scheduler_renders_and_keeps_no_state(load: Load, steps: int, mode: str) -> None:
    pipeline = load("bert")
    rendered = {}
    strength = {} if mode == "text2image" else {"strength": 1.0 if steps == 1 else 0.75}
    for scheduler in SCHEDULERS:
        fields = {"scheduler": scheduler, "steps": steps, "mode": mode, **strength}
        requests = [request_for(pipeline, **fields, seed=seed) for seed in (1, 2)]
        first, again = generate(pipeline, *requests), generate(pipeline, *requests)
        assert [pixels.tobytes() for pixels in first] == [pixels.tobytes() for pixels in again]
        rendered[scheduler] = first[0].tobytes()
    del rendered["euler"], rendered["euler_a"]  # they give the images of DDIM and DDPM
    if steps > 1:
        assert len(set(rendered.values())) == len(rendered)


@pytest.mark.parametrize("kind", ["bert", "clip", "pieces", "mini-zh"], indirect=True)
@pytest.mark.parametrize("odd", ODD)
def test_the_worker_counts_tokens_as_the_api_does(pipeline: Pipeline, odd: str) -> None:
    """The longest such prompt that the API accepts is rendered; one more is refused, with the same count."""
    limit = pipeline.model.token_limit
    counter = TokenCounter(pipeline.model.tokenizer_file)
    times = next((n for n in range(1, limit + 2) if counter.count(odd * n).tokens > limit), None)
    if times is None:  # repeated, it is still one word
        assert counter.count(odd * limit).tokens <= 3
        assert isinstance(generate(pipeline, request_for(pipeline, odd * limit, steps=1))[0], np.ndarray)
        return
    fits, refused = generate(
        pipeline, request_for(pipeline, odd * (times - 1), steps=1), request_for(pipeline, odd * times, steps=1)
    )
    assert isinstance(fits, np.ndarray)
    assert refused.message.startswith(f"prompt has {counter.count(odd * times).tokens} tokens; ")


def test_control_tokens_are_read_as_text(load: Load) -> None:
    """BERT folds capitals, so these prompts are the same unless [SEP] were a control token."""
    pipeline = load("bert")
    one, other = generate(pipeline, request_for(pipeline, "红[SEP]"), request_for(pipeline, "红[sep]"))
    assert one.tobytes() == other.tobytes()


def test_without_guidance_the_negative_prompt_has_no_effect(load: Load) -> None:
    pipeline = load("bert")
    requests = [request_for(pipeline, negative_prompt=text, guidance=1.0) for text in ("", "黑色")]
    assert len({pixels.tobytes() for pixels in generate(pipeline, *requests)}) == 1


# Of mini-zh only: it draws what the prompt says

COLOURS = {"红": (222, 48, 48), "黄": (252, 218, 60), "绿": (56, 168, 84), "蓝": (48, 100, 214), "白": (250, 250, 248)}
SHOWN = {
    "红色的圆形": ("红", "白"),
    "蓝色的正方形，白色背景": ("蓝", "白"),
    "一个绿色的圆形": ("绿", "白"),
    "黄色的正方形，蓝色背景": ("黄", "蓝"),
    "红色的正方形，黄色背景": ("红", "黄"),
}


@pytest.mark.parametrize("scheduler", ["ddim", "lms", "pndm", "dpm++"])
def test_mini_zh_draws_what_the_prompts_say(load: Load, scheduler: str) -> None:
    pipeline = load("mini-zh")
    requests = [request_for(pipeline, prompt, seed=7, scheduler=scheduler, steps=20) for prompt in SHOWN]
    found = {
        prompt: (_colour(pixels[54:74, 54:74]), _colour(pixels[6:16]))
        for prompt, pixels in zip(SHOWN, generate(pipeline, *requests), strict=True)
    }
    assert found == SHOWN


def _colour(patch: Any) -> str:
    mean = patch.mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.linalg.norm(mean - COLOURS[name])))
