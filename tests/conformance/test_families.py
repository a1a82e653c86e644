"""Every model family as published: it loads, encodes prompts and renders as it did with diffusers 0.6.0."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor

from common.recipes import prompt_weighting
from common.recipes.token_counter import TokenCounter
from tests.conformance.test_pipelines import ODD, generate, request_for
from tests.golden.make import HERE, RECIPES, SEED, STEPS
from tests.support import families
from tests.support.devices import DEVICE, LEVELS
from tests.support.parts import T5Tokenizer
from worker.checkpoints import tokenizer
from worker.pipelines import registry
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning", "ignore:The configuration file of this scheduler:FutureWarning"
)

Load = Callable[[str], DiffusersPipeline]

every_family = pytest.mark.parametrize("name", families.FAMILIES)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: families.publish(tmp_path_factory.mktemp("family") / name, name) for name in families.FAMILIES}


@pytest.fixture(scope="module")
def load(published: dict[str, Path]) -> Load:
    @cache
    def one(name: str) -> DiffusersPipeline:
        loaded = registry.load(replace(families.entry(published[name], name), precision="fp32"), DEVICE, threads=1)
        assert isinstance(loaded, DiffusersPipeline)
        return loaded

    return one


def render(pipeline: DiffusersPipeline, name: str) -> np.ndarray:
    pixels: np.ndarray = generate(pipeline, request_for(pipeline, seed=SEED, steps=STEPS, **RECIPES[name]))[0]
    return pixels


@every_family
def test_it_renders_what_diffusers_rendered_in_2022(load: Load, name: str) -> None:
    """Within a level here and there: attention is computed in another order today."""
    differences = np.abs(render(load(name), name).astype(int) - np.asarray(Image.open(HERE / f"{name}.png")))
    assert differences.max() <= LEVELS
    assert (differences > LEVELS - 1).mean() < 0.005


@every_family
def test_it_renders_what_a_plain_pipeline_renders(load: Load, published: dict[str, Path], name: str) -> None:
    """To the byte. Only rinna's tokenizer is loaded by code of our own."""
    ours, recipe = load(name), RECIPES[name]
    plain = diffusers.StableDiffusionPipeline.from_pretrained(
        published[name],
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **({"tokenizer": ours._pipe.tokenizer} if name == "rinna" else {}),
    )
    plain.to(DEVICE).set_progress_bar_config(disable=True)
    if DEVICE != "cpu":
        for component in (plain.unet, plain.vae):
            component.to(memory_format=torch.channels_last)
    (theirs,) = plain(
        recipe["prompt"],
        negative_prompt=recipe["negative_prompt"],
        guidance_scale=recipe["guidance"],
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED),
    ).images
    assert render(ours, name).tobytes() == np.asarray(theirs).tobytes()


@every_family
def test_prompts_are_padded_to_the_familys_length(load: Load, name: str) -> None:
    assert load(name)._pipe.tokenizer.model_max_length == families.FAMILIES[name].length


def test_another_padding_gives_another_image(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UNet attends to 512 tokens, most of which are padding."""
    zh = load("zh-v0")
    as_published = render(zh, "zh-v0")
    monkeypatch.setattr(zh._pipe.tokenizer, "model_max_length", 77)
    assert render(zh, "zh-v0").tobytes() != as_published.tobytes()


# Tokens


@every_family
def test_a_converted_tokenizer_counts_the_same(load: Load, name: str, tmp_path: Path) -> None:
    """The API reads the tokenizer.json that an import makes of vocab.txt or spiece.model."""
    tokenizer = load(name)._pipe.tokenizer
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    counter = TokenCounter(tmp_path / "tokenizer.json")
    for text in (*ODD, RECIPES[name]["prompt"], "", " "):
        assert counter.count(text).tokens == len(tokenizer(prompt_weighting.strip_weights(text)).input_ids)


@every_family
def test_unknown_words_are_named(load: Load, tmp_path: Path, name: str) -> None:
    load(name)._pipe.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    unknown = () if name == "sd-1.5" else ("龘", "😀")  # its tokens are bytes
    counter = TokenCounter(tmp_path / "tokenizer.json")
    assert counter.count("龘 a 红😀").unknown == unknown
    assert list(counter.suspects(["a", "龘"], 77)) == ([1] if unknown else [])


@pytest.mark.parametrize(
    "text",
    [
        *ODD,
        "サラリーマン 油絵",
        "ＣＡＴ　and Dog ",
        "",
        "  ",
        "</s> <s>",
        "[PAD]",
        "a  b",
    ],
)
def test_tokens_are_those_of_sentencepiece(tmp_path: Path, text: str) -> None:
    """rinna's model was trained on sentencepiece's ids of the lower-case text, and the end token."""
    T5Tokenizer().save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "spiece.model"
    ours = tokenizer.read_sentencepiece(file)
    ours.encode_special_tokens = True
    theirs = SentencePieceProcessor(model_file=str(file))
    assert ours.encode(text).ids == [*theirs.encode(text.lower()), theirs.eos_id()]
