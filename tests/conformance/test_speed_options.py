"""What an entry of the catalogue can say for large images and small cards: a VAE that works in tiles, and the precision
of a single component. A CPU computes in fp32, so the tests of precisions take it for a GPU, which also knows fp16.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.catalog import catalog
from common.catalog.catalog import Model
from common.config import SHIPPED_CATALOG
from common.errors import Invalid, NanImage
from tests.conformance.test_pipelines import MINI, generate, request_for
from tests.support import checkpoints
from tests.support.devices import DEVICE
from worker.checkpoints import layout, loader
from worker.pipelines import assembly, diffusers_pipeline, registry
from worker.pipelines.diffusers_pipeline import DiffusersPipeline

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")

SIDE, TILE = 256, 128  # pixels of an image, and of a tile of mini-zh's VAE
SEAMS = 48  # levels


def load(model: Model) -> DiffusersPipeline:
    loaded = registry.load(model, DEVICE, threads=1)
    assert isinstance(loaded, DiffusersPipeline)
    return loaded


# Tiles


@pytest.fixture(scope="module")
def tiled() -> Iterator[DiffusersPipeline]:
    loaded = load(replace(MINI, tile_above=SIDE * TILE))
    yield loaded
    loaded.close()


@pytest.fixture
def decoded(tiled: DiffusersPipeline) -> Iterator[list[int]]:
    """The side in pixels of what each call of the VAE's decoder makes."""
    sides: list[int] = []
    decoder = tiled._pipe.vae.decoder
    hook = decoder.register_forward_pre_hook(lambda part, given: sides.append(max(given[0].shape[2:]) * 8))
    yield sides
    hook.remove()


def test_a_large_image_is_decoded_in_tiles(tiled: DiffusersPipeline, decoded: list[int]) -> None:
    """None is larger than the size that the VAE was made for, so memory does not grow with the image."""
    request = request_for(tiled, width=SIDE, height=SIDE)
    (in_tiles,) = generate(tiled, request)
    assert len(decoded) == 9
    assert max(decoded) == TILE
    whole = load(MINI)
    levels = np.abs(generate(whole, request)[0].astype(int) - in_tiles)
    whole.close()
    assert 0 < levels.max() <= SEAMS
    assert levels.mean() < 3


def test_an_image_of_the_limit_is_not_tiled_nor_is_one_after_a_large_one(
    tiled: DiffusersPipeline, decoded: list[int]
) -> None:
    generate(tiled, request_for(tiled, width=SIDE, height=SIDE))
    decoded.clear()
    generate(tiled, request_for(tiled, width=SIDE, height=TILE))
    assert decoded == [SIDE]
    assert not tiled._pipe.vae.use_tiling  # another model may share it


def test_the_metadata_name_the_limit(tiled: DiffusersPipeline) -> None:
    assert tiled.details["tile_above"] == SIDE * TILE
    assert "tile_above" not in load(MINI).details


# Precision


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def precision(model: Model, device_kind: str, component: str = "") -> str:
        return loader.precision(model, "cuda", component)

    for module in (assembly, diffusers_pipeline):
        monkeypatch.setattr(module, "precision", precision)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.make(tmp_path / "tiny", "bert")


@pytest.fixture
def mixed(folder: Path, as_on_a_gpu: None) -> Iterator[DiffusersPipeline]:
    loaded = load(checkpoints.entry(folder, precision="fp16", component_precision={"vae": "fp32"}))
    yield loaded
    loaded.close()


def dtypes(pipeline: DiffusersPipeline) -> dict[str, torch.dtype]:
    return {name: part.dtype for name, part in diffusers_pipeline.modules(pipeline._pipe).items()}


MIXED = {
    "text_encoder": torch.float16,
    "unet": torch.float16,
    "vae": torch.float32,
    "safety_checker": torch.float16,
}


@pytest.mark.parametrize("mode", ["text2image", "inpaint"])
def test_a_component_computes_in_its_own_precision(mixed: DiffusersPipeline, mode: str) -> None:
    assert dtypes(mixed) == MIXED
    assert mixed.details == {"precision": "fp16", "component_precision": {"vae": "fp32"}}
    seen: list[torch.dtype] = []
    mixed._pipe.vae.decoder.register_forward_pre_hook(lambda part, given: seen.append(given[0].dtype))
    assert isinstance(generate(mixed, request_for(mixed, mode=mode))[0], np.ndarray)
    assert seen == [torch.float32]


def test_a_vae_that_overflows_in_half_precision_does_not_in_its_own(mixed: DiffusersPipeline) -> None:
    """Nothing is rendered twice: only the UNet is in fp16."""
    with torch.no_grad():
        mixed._pipe.vae.post_quant_conv.weight *= 3e4
    calls: list[int] = []
    (result,) = mixed.generate([request_for(mixed)], lambda step, steps: calls.append(step))
    assert not isinstance(result, NanImage)
    assert calls.count(1) == 1


def test_after_a_retry_in_full_precision_each_component_has_its_own_again(mixed: DiffusersPipeline) -> None:
    (result,) = mixed.generate([request_for(mixed, checkpoints.POISON)], lambda step, steps: None)
    assert isinstance(result, NanImage)
    assert dtypes(mixed) == MIXED


def test_models_share_a_component_only_in_the_same_precision(folder: Path, mixed: DiffusersPipeline) -> None:
    other = checkpoints.entry(folder, name="other", precision="fp16")
    ids = {layout.component_id(model, folder, "vae") for model in (mixed.model, other)}
    assert len(ids) == 2
    plain = load(other)
    assert plain._pipe.vae.dtype == torch.float16
    assert mixed._pipe.vae.dtype == torch.float32
    assert plain.details == {"precision": "fp16"}
    plain.close()


def test_a_cpu_ignores_it(folder: Path) -> None:
    entry = checkpoints.entry(folder, precision="fp16", component_precision={"vae": "bf16"})
    loaded = registry.load(entry, "cpu", threads=1)
    expected = (
        {"precision": "fp16", "component_precision": {"vae": "bf16"}} if DEVICE != "cpu" else {"precision": "fp32"}
    )
    assert loaded.details == expected
    loaded.close()


# The catalogue


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('component_precision = { unet = "fp32" }', "mini-zh has a component_precision of 'unet'"),
        ('component_precision = { vae = "fp8" }', "mini-zh names the precision 'fp8'"),
        ("tile_above = -1", "mini-zh has a tile_above of -1"),
    ],
)
def test_an_entry_that_cannot_be_done_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "catalog.toml"
    file.write_text(SHIPPED_CATALOG.read_text().replace("[models.mini-zh]", f"[models.mini-zh]\n{line}"))
    with pytest.raises(Invalid, match=reason):
        catalog.read(file)


def test_no_model_has_them_by_default() -> None:
    models = catalog.read(SHIPPED_CATALOG).models.values()
    assert {(model.tile_above, *model.component_precision) for model in models} == {(None,)}
