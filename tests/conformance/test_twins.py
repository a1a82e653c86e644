"""Every family of models, by its twin: a tiny checkpoint that plain diffusers draws with as the model's card says.

A call of several pictures gives what plain diffusers gives for each alone; nothing is left behind by a cancelled call,
a LoRA, or an eviction. A mutant of the family's code that no check notices fails the suite.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from common.catalog.loras import Lora, LoraUse
from common.errors import Interrupted, PromptRefused
from common.recipes.token_counter import TokenCounter
from common.storage import sha256
from tests.conformance.test_pipelines import ODD, generate, gradient, request_for, right_half
from tests.support.devices import DEVICE, LEVELS
from tests.support.twins import Twin, plain, twins
from worker.pipelines import registry
from worker.pipelines.base import ImageRequest
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 2
PROMPTS = ("红色的圆形", "女孩们打开了另一世界的门，山水的背景", "山")  # of different length
NEGATIVES = ("", "广告水印", "黑")
CHANGED = "蓝色的圆形"  # one hanzi
CONTROLS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>", "</s>", "[gMASK]")  # of some tokenizers
LORA_LAYERS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Loaded:
    """A twin, its checkpoint, and the pipeline of our own."""

    twin: Twin
    folder: Path
    pipeline: DiffusersPipeline

    @property
    def takes_negatives(self) -> bool:
        return self.pipeline.model.guided and self.pipeline.model.facts.negative_prompt != "no"

    def request(self, prompt: str = PROMPTS[0], seed: int = 1, **fields: object) -> ImageRequest:
        return request_for(self.pipeline, prompt, seed, **{"steps": STEPS, **fields})

    def requests(self, mode: str = "text2image") -> list[ImageRequest]:
        """Prompts of different length, with seeds and negative prompts of their own."""
        negatives = NEGATIVES if self.takes_negatives else [""] * len(PROMPTS)
        return [
            self.request(prompt, seed, negative_prompt=negative, mode=mode)
            for seed, (prompt, negative) in enumerate(zip(PROMPTS, negatives, strict=True))
        ]

    def draw(self, *requests: ImageRequest) -> list[NDArray[np.uint8]]:
        found = generate(self.pipeline, *requests)
        assert all(isinstance(pixels, np.ndarray) for pixels in found), found
        return found

    def plain(self, request: ImageRequest) -> NDArray[np.uint8]:
        return self.twin.reference(self.folder, request.recipe, request.seed)


@pytest.fixture(scope="module", params=twins(), ids=lambda twin: twin.NAME)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder = request.param.make(tmp_path_factory.mktemp("twin"))
    model = replace(request.param.entry(folder), loras={}, precision="fp32")
    pipeline = registry.load(model, DEVICE, threads=1)
    assert isinstance(pipeline, DiffusersPipeline)
    yield Loaded(request.param, folder, pipeline)
    pipeline.close()
    plain.load.cache_clear()


def test_the_twin_counts(twin: Loaded) -> None:
    """In plain diffusers each change of the recipe moves at least a hundredth of the values by 8 levels."""
    first, guidance = twin.request(), twin.pipeline.model.guidance
    others = {"prompt": twin.request(CHANGED), "seed": twin.request(seed=2)}
    if twin.pipeline.model.guided:
        others["guidance"] = twin.request(guidance=guidance / 2 + twin.pipeline.model.facts.guidance.off / 2)
    if twin.takes_negatives:
        others["negative prompt"] = twin.request(negative_prompt=NEGATIVES[2])
    before = twin.plain(first).astype(int)
    moved = {name: (np.abs(before - twin.plain(other)) >= 8).mean() for name, other in others.items()}
    assert {name: share for name, share in moved.items() if share < 0.01} == {}


def draws_as_plain_diffusers(twin: Loaded) -> None:
    """Each picture of a call of several, against plain diffusers for it alone."""
    requests = twin.requests()
    for ours, request in zip(twin.draw(*requests), requests, strict=True):
        assert farthest(ours, twin.plain(request)) <= LEVELS


def farthest(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other).max())


def test_it_draws_what_plain_diffusers_draws(twin: Loaded) -> None:
    draws_as_plain_diffusers(twin)
    if twin.pipeline.model.guided:
        unguided = twin.request(guidance=twin.pipeline.model.facts.guidance.off)
        assert farthest(twin.draw(unguided)[0], twin.plain(unguided)) <= LEVELS


def test_no_mutant_draws_what_plain_diffusers_draws(twin: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    unnoticed = []
    for name, mutate in twin.twin.MUTANTS.items():
        with monkeypatch.context() as patch:
            mutate(patch)
            try:
                draws_as_plain_diffusers(twin)
            except AssertionError:
                continue
        unnoticed.append(name)
    assert unnoticed == []
    draws_as_plain_diffusers(twin)


@pytest.mark.parametrize("mode", ["text2image", "image2image", "inpaint"])
def test_others_in_the_call_move_no_byte_by_more_than_a_level(twin: Loaded, mode: str) -> None:
    requests = twin.requests(mode)
    together = twin.draw(*requests)
    for among, request in zip(together, requests, strict=True):
        assert farthest(among, twin.draw(request)[0]) <= LEVELS


def test_a_cancelled_call_leaves_nothing_behind(twin: Loaded) -> None:
    before = twin.draw(twin.request())

    def interrupt(step: int, steps: int) -> None:
        raise Interrupted("No image is wanted any more.")

    with pytest.raises(Interrupted):
        twin.pipeline.generate(twin.requests(), interrupt)
    assert np.array_equal(before, twin.draw(twin.request()))


def test_steps_are_told_one_by_one(twin: Loaded) -> None:
    calls = list[tuple[int, int]]()
    twin.pipeline.generate([twin.request(steps=3)], lambda step, steps: calls.append((step, steps)))
    steps = calls[0][1]
    assert steps >= 3
    assert calls == [(step, steps) for step in range(1, steps + 1)]


# Prompts


def test_a_prompt_is_read_to_its_limit_and_refused_beyond(twin: Loaded) -> None:
    """Plain diffusers truncates what the model does not read: a limit that is too high would show."""
    model, pipe, family = twin.pipeline.model, twin.pipeline._pipe, twin.pipeline._family
    limit = family.token_limit(model, pipe)
    fits = next(n for n in range(limit, 0, -1) if family.count_tokens(model, pipe, "红" * n) <= limit)
    longest = twin.request("红" * (fits - 1) + "山")  # what is at the end counts
    (ours,) = twin.draw(longest)
    theirs = twin.plain(longest)
    assert farthest(ours, theirs) <= LEVELS
    assert (ours != theirs).mean() < 0.002  # of so many tokens, the last few move little
    rendered = generate(twin.pipeline, twin.request(), twin.request("红" * (fits + 1)))
    assert [type(one) for one in rendered] == [np.ndarray, PromptRefused]
    assert rendered[1].message.startswith("prompt has ")


def test_a_limit_that_an_entry_raises_cuts_no_prompt(twin: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is longer than the family's own limit is still refused, or else read to its end."""
    pipeline = twin.pipeline
    monkeypatch.setattr(pipeline, "model", replace(pipeline.model, token_limit=100_000))
    one, other = (twin.request("红" * (pipeline.model.facts.token_limit + 20) + end) for end in "山水")
    rendered = generate(pipeline, one)
    if not isinstance(rendered[0], PromptRefused):
        read = [pipeline._arguments([request.recipe])["prompt_embeds"][0] for request in (one, other)]
        assert not torch.allclose(*read)


@pytest.mark.parametrize("text", [*ODD, *CONTROLS, "\n红", " 红 \n", "(红)", r"\(红\)"])
def test_the_api_counts_tokens_as_the_worker_does(twin: Loaded, text: str) -> None:
    """Control tokens in a prompt are text for both."""
    file = twin.pipeline.model.tokenizer_file
    if twin.twin.NAME == "kolors":  # its tokenizer has no file that the API reads, so only the worker counts
        assert file is None
        return
    assert file is not None
    ours = twin.pipeline._family.count_tokens(twin.pipeline.model, twin.pipeline._pipe, text)
    counter = TokenCounter(file, twin.pipeline.model.facts.weighted)
    assert counter.count(text).tokens == ours


def test_control_tokens_in_a_prompt_are_text(twin: Loaded) -> None:
    """Plain diffusers obeys those that its tokenizer has."""
    model, pipe = twin.pipeline.model, twin.pipeline._pipe
    known = [token for token in CONTROLS if token in pipe.components[model.facts.tokenizer].all_special_tokens]
    count = partial(twin.pipeline._family.count_tokens, model, pipe)
    assert [token for token in known if count(token) <= count("红")] == []
    for token in known:
        request = twin.request(f"红{token}山")
        assert farthest(twin.draw(request)[0], twin.plain(request)) >= 8


# Input pictures


def test_the_least_strength_keeps_what_the_autoencoder_keeps(twin: Loaded) -> None:
    side = twin.pipeline.model.width
    kept = plain.encode_and_decode(twin.folder, gradient(side, side)).astype(int)
    moved = []
    for strength in (0.02, 0.5, 1.0):
        (pixels,) = twin.draw(twin.request(mode="image2image", steps=50, strength=strength))
        moved.append(np.abs(kept - pixels).mean())
    assert moved[0] < 4
    assert moved == sorted(moved)


def test_a_picture_that_is_not_square_is_kept_as_well(twin: Loaded) -> None:
    height = twin.pipeline.model.width
    for width in (height // 2, height * 2):
        kept = plain.encode_and_decode(twin.folder, gradient(height, width)).astype(int)
        request = twin.request(mode="image2image", steps=50, strength=0.02, width=width, height=height)
        (pixels,) = twin.draw(request)
        assert pixels.shape == kept.shape
        assert np.abs(kept - pixels).mean() < 8  # of few pixels, one step moves more; a wrong order moves 38


def test_a_mask_keeps_the_source_outside(twin: Loaded) -> None:
    side = twin.pipeline.model.width
    mask, source = right_half(side, side), gradient(side, side)
    one, other = twin.draw(*(twin.request(seed=seed, mode="inpaint", strength=1.0) for seed in (1, 2)))
    for pixels in (one, other):
        assert np.array_equal(pixels[~mask], source[~mask])
    assert (np.abs(one.astype(int) - other)[mask] >= 8).mean() > 0.01


# What comes and goes


def test_a_lora_changes_its_own_pictures_only(twin: Loaded, tmp_path: Path) -> None:
    pipeline = twin.pipeline
    before = twin.draw(twin.request())
    denoiser, generator = pipeline.model.facts.denoiser, torch.Generator().manual_seed(1)
    weights = dict[str, torch.Tensor]()
    for name, layer in getattr(pipeline._pipe, denoiser).named_modules():
        if name.endswith(LORA_LAYERS) and isinstance(layer, torch.nn.Linear):
            weights[f"{denoiser}.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            weights[f"{denoiser}.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator)
    save_file(weights, file := tmp_path / "ink.safetensors")
    pipeline.model.loras["ink"] = Lora(
        "ink", str(file), sha256(file.read_bytes()), "none", "", "", file, family=pipeline.model.family
    )
    inked = twin.request(lora=(LoraUse(name="ink", weight=1.0),))
    first = twin.draw(inked)
    assert farthest(first[0], before[0]) >= 8
    assert np.array_equal(before, twin.draw(twin.request()))
    assert np.array_equal(first, twin.draw(inked))
    assert np.array_equal(before, twin.draw(twin.request()))


def test_it_returns_from_an_eviction_as_it_was(twin: Loaded) -> None:
    before = twin.draw(twin.request())
    again = registry.load(twin.pipeline.model, DEVICE, threads=1)
    again.close()
    again = registry.load(twin.pipeline.model, DEVICE, threads=1)
    assert np.array_equal(before, generate(again, twin.request()))
    again.close()
    assert np.array_equal(before, twin.draw(twin.request()))


def test_it_says_what_it_is_and_takes(twin: Loaded) -> None:
    assert twin.pipeline.details == {"precision": "fp32"}
    of_files = registry.model_components(twin.pipeline.model, "cpu")
    assert {name: pytest.approx(size, rel=0.1) for name, size in of_files.items()} == twin.pipeline.components
