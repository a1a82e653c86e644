"""FLUX.1 and FLUX.2: the models that were distilled to need no guidance, and those that they come from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.catalog import catalog
from common.catalog.catalog import Model
from common.config import SHIPPED_CATALOG
from common.errors import Invalid, ModelRefused
from common.recipes.recipe import Draft, resolve
from tests.conformance.test_pipelines import generate, request_for
from tests.support.devices import DEVICE, LEVELS
from tests.support.twins import flux, flux2
from worker.checkpoints import layout
from worker.models import importer
from worker.pipelines import registry

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SHIPPED = catalog.read(SHIPPED_CATALOG)
DISTILLED: dict[str, Any] = {"guided": False, "guidance": 1.0}
GUIDED: dict[str, Any] = {"guided": True, "guidance": 3.5, "token_limit": 512}


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux.make(tmp_path_factory.mktemp("dev"), guidance_embeds=True)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux.make(tmp_path_factory.mktemp("schnell"))


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux2.make(tmp_path_factory.mktemp("klein"), is_distilled=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux2.make(tmp_path_factory.mktemp("base"))


@pytest.fixture
def models(dev: Path, schnell: Path, klein: Path, base: Path) -> dict[str, Model]:
    return {
        "dev": flux.entry(dev, **GUIDED),
        "schnell": flux.entry(schnell),
        "klein": flux2.entry(klein, **DISTILLED),
        "base": flux2.entry(base),
    }


def render(model: Model, reference: Callable[..., Any], **fields: Any) -> tuple[Any, Any]:
    """Ours and that of plain diffusers."""
    pipeline = registry.load(model, DEVICE, threads=1)
    request = request_for(pipeline, steps=2, **fields)
    (ours,) = generate(pipeline, request)
    pipeline.close()
    assert model.source_path
    return ours.astype(int), reference(model.source_path, request.recipe, request.seed)


def test_dev_reads_its_guidance_and_twice_as_many_tokens(models: dict[str, Model]) -> None:
    prompt = "红色的圆形" * 80  # 402 tokens
    ours, theirs = render(models["dev"], flux.reference, prompt=prompt)
    assert np.abs(ours - theirs).max() <= LEVELS
    unlike, theirs = render(models["dev"], flux.reference, prompt=prompt, guidance=1.0)
    assert np.abs(unlike - theirs).max() <= LEVELS
    assert np.abs(ours - unlike).max() > LEVELS


def test_a_distilled_klein_stays_distilled(models: dict[str, Model]) -> None:
    ours, theirs = render(models["klein"], flux2.reference)
    assert np.abs(ours - theirs).max() <= LEVELS
    pipeline = registry.load(models["klein"], DEVICE, threads=1)
    assert pipeline._pipe.config.is_distilled  # type: ignore[attr-defined]
    pipeline.close()


@pytest.mark.parametrize("name", ["dev", "schnell", "klein", "base"])
def test_an_entry_that_contradicts_the_files_about_guidance_is_refused(models: dict[str, Model], name: str) -> None:
    model = models[name]
    assert layout.find(model) == model.source_path
    with pytest.raises(ModelRefused, match=f"must say guided = {str(model.guided).lower()}"):
        layout.find(replace(model, guided=not model.guided))


@pytest.mark.parametrize("name", ["dev", "schnell", "klein", "base"])
def test_an_import_tells_family_and_distillation_from_the_files(
    models: dict[str, Model], name: str, tmp_path: Path
) -> None:
    model = models[name]
    entry: dict[str, Any] = {
        "source": str(model.source_path),
        "description": "noise",
        "licence_url": "",
        "width": 64,
        "height": 64,
    }
    entry["safety_checker"] = False

    def load(draft: Model) -> Any:
        return registry.load(draft, "cpu", threads=1)

    importer.import_model(replace(model, source_path=None), tmp_path, load, lambda *_: None, entry)
    found = catalog.model_from_entry(model.name, catalog.read_entry(model.name, tmp_path), tmp_path)
    expected = {
        "dev": (True, 28, 3.5, 512),
        "schnell": (False, 4, 0.0, 256),
        "klein": (False, 4, 1.0, 500),
        "base": (True, 50, 4.0, 500),
    }
    assert found.family == model.family
    assert (found.guided, found.steps, found.guidance, found.token_limit) == expected[name]


@pytest.mark.parametrize("name", ["flux-schnell", "flux2-klein"])
def test_the_shipped_entries_are_those_of_distilled_models(name: str) -> None:
    model = SHIPPED.get(name)
    assert model.facts.distilled
    for key, value in model.facts.distilled.defaults.items():
        assert getattr(model, key) == value
    recipe = resolve(Draft.model_validate({"prompt": "a cat", "model": name}), SHIPPED, name, root_seed=1)
    assert (recipe.steps, recipe.guidance, recipe.scheduler) == (4, model.guidance, "flow_euler")
    with_guidance = Draft.model_validate({"prompt": "a cat", "negative_prompt": "a dog", "guidance": 4.0})
    with pytest.raises(Invalid) as refused:
        resolve(with_guidance, SHIPPED, name, root_seed=1)
    assert {error.field for error in refused.value.fields} == {"negative_prompt", "guidance"}
