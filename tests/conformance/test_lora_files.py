"""What each file that is called a LoRA gets: it changes the picture as its weights say, or it is refused whole.

The pictures are compared with those of the same pipeline whose weights were changed by
hand: W + weight · alpha / rank · B A.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.catalog.loras import Lora, LoraUse
from common.errors import LoraRefused
from common.storage import sha256
from tests.support import checkpoints, loras
from tests.support.checkpoints import entry
from tests.support.loras import RANK, File, layers
from tests.support.parts import unet as checkpoint_unet
from worker.loras.adapters import LoraAdapters
from worker.loras.names import Layers

CROSS = r".*attn2\.to_(k|v)"
ATTENTION = r".*attn\d\.to_(q|k|v|out\.0)"
TEXT = r".*(q_proj|out_proj|fc1)"
WEIGHT = 0.7


@cache
def pipeline(kind: str) -> Any:
    torch.set_num_threads(1)
    return {"sdxl": loras.sdxl, "flux": loras.flux}.get(kind, lambda: loras.stable_diffusion(kind))()


@cache
def untouched(kind: str) -> np.ndarray:
    """The picture of a pipeline before the first LoRA."""
    return loras.draw(pipeline(kind))


def scaled(by: float) -> Callable[[loras.Layer], torch.Tensor]:
    return lambda layer: layer.product * by


def unet_and_text(pipe: Any) -> File:
    unet = loras.file(layers(pipe, "unet", CROSS), loras.kohya(4.0), scaled(4 / RANK))
    text = loras.file(layers(pipe, "text_encoder", TEXT), loras.kohya(1.0), scaled(1 / RANK))
    return File({**unet.weights, **text.weights}, {**unet.by_hand, **text.by_hand})


def convolutions(pipe: Any) -> File:
    chosen = layers(
        pipe, "unet", r".*(proj_in|proj_out|resnets\.0\.conv1|samplers\.0\.conv|time_emb_proj|conv_shortcut)"
    )
    return loras.file(chosen, loras.kohya(1.0), scaled(1 / RANK))


def linear_as_convolutions(pipe: Any) -> File:
    """Some tools write 1×1 convolutions for layers that are linear."""
    found = loras.file(layers(pipe, "unet", CROSS), loras.kohya())
    return File({name: weight[:, :, None, None] for name, weight in found.weights.items()}, found.by_hand)


def settings_in_the_header(pipe: Any) -> File:
    found = loras.file(layers(pipe, "unet", CROSS), loras.diffusers, scaled(3 / RANK))
    other = layers(pipe, "unet", CROSS)[0]
    found.by_hand[other.component, other.name] = other.product * 1 / RANK
    settings = {"unet.r": RANK, "unet.lora_alpha": 3, "unet.alpha_pattern": {other.name: 1}}
    found.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    return found


def rank_stabilised(pipe: Any) -> File:
    found = loras.file(layers(pipe, "unet", CROSS), loras.diffusers, scaled(3 / RANK**0.5))
    settings = {"unet.r": RANK, "unet.lora_alpha": 3, "unet.use_rslora": True}
    found.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    return found


def loha(rank: int) -> Callable[[Any], File]:
    write, change = loras.loha(alpha=1.0, rank=rank)
    return lambda pipe: loras.file(layers(pipe, "unet", CROSS + r"|.*resnets\.0\.conv2"), write, change)


def dora_of_lycoris(pipe: Any) -> File:
    def write(layer: loras.Layer) -> loras.Weights:
        column = loras.dora_lengths(layer).reshape(-1, *(1,) * (layer.own.ndim - 1))
        return {**loras.kohya(4.0)(layer), f"{loras.kohya_name(layer)}.dora_scale": column}

    return loras.file(layers(pipe, "unet", CROSS + r"|.*resnets\.0\.conv2|.*proj_in"), write, loras.dora_change(4.0))


def dora_of_peft(pipe: Any) -> File:
    def write(layer: loras.Layer) -> loras.Weights:
        lengths = {f"unet.{layer.name}.lora_magnitude_vector.weight": loras.dora_lengths(layer)}
        return {**loras.diffusers(layer), **lengths}

    return loras.file(layers(pipe, "unet", CROSS), write, loras.dora_change(RANK))


def sdxl_of_kohya(pipe: Any) -> File:
    found = File({})
    inside = r".*(attn\d\.to_q|proj_in|ff\.net\.0\.proj|conv|conv[12]|time_emb_proj|conv_shortcut)"
    for component, pattern in {
        "unet": rf"(down_blocks|mid_block|up_blocks){inside}|time_embedding\.linear_1|add_embedding\.linear_2",
        "text_encoder": TEXT,
        "text_encoder_2": TEXT,
    }.items():
        chosen = layers(pipe, component, pattern)
        part = loras.file(chosen, loras.kohya(1.0, loras.of_the_original), scaled(1 / RANK))
        found.weights |= part.weights
        found.by_hand |= part.by_hand
    return found


def sdxl_of_diffusers(pipe: Any) -> File:
    unet = loras.file(layers(pipe, "unet", CROSS), loras.diffusers)
    text = [loras.file(layers(pipe, name, TEXT), loras.diffusers_text) for name in ("text_encoder", "text_encoder_2")]
    return File(
        {**unet.weights, **text[0].weights, **text[1].weights},
        {**unet.by_hand, **text[0].by_hand, **text[1].by_hand},
    )


def flux_of_black_forest_labs(pipe: Any) -> File:
    """One layer for q, k and v, under kohya's names."""
    fused = {
        "lora_unet_double_blocks_0_img_attn_qkv": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
        "lora_unet_double_blocks_0_img_mlp_0": ["transformer_blocks.0.ff.net.0.proj"],
        "lora_unet_single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
    }
    found = File({})
    for name, parts in fused.items():
        owns = [pipe.transformer.get_submodule(part).weight for part in parts]
        generator = torch.Generator().manual_seed(2)
        down = 0.3 * torch.randn(RANK, owns[0].shape[1], generator=generator)
        up = 0.3 * torch.randn(sum(len(own) for own in owns), RANK, generator=generator)
        found.weights |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(1.0),
        }
        changes = (up @ down / RANK).split([len(own) for own in owns])
        found.by_hand |= {("transformer", part): change for part, change in zip(parts, changes, strict=True)}
    return found


DRAWN: dict[str, tuple[str, Callable[[Any], File]]] = {
    "diffusers": ("clip", lambda p: loras.file(layers(p, "unet", ATTENTION), loras.diffusers)),
    "diffusers, for a BERT's UNet": ("bert", lambda p: loras.file(layers(p, "unet", ATTENTION), loras.diffusers)),
    "attention processors": (
        "clip",
        lambda p: loras.file(layers(p, "unet", ATTENTION), loras.attention_processors("unet.")),
    ),
    "attention processors without unet.": (
        "clip",
        lambda p: loras.file(layers(p, "unet", ATTENTION), loras.attention_processors("")),
    ),
    "CLIP's attention, old names": (
        "clip",
        lambda p: loras.file(layers(p, "text_encoder", r".*(q|out)_proj"), loras.text_attention),
    ),
    "kohya with a text encoder and alphas": ("clip", unet_and_text),
    "kohya's convolutions": ("clip", convolutions),
    "linear layers as convolutions": ("clip", linear_as_convolutions),
    "PEFT": (
        "clip",
        lambda p: loras.file(layers(p, "unet", ATTENTION), loras.lora_a_b(lambda _: "base_model.model.")),
    ),
    "ComfyUI": (
        "clip",
        lambda p: loras.file(layers(p, "unet", ATTENTION), loras.lora_a_b(lambda _: "model.diffusion_model.")),
    ),
    "bare": ("clip", lambda p: loras.file(layers(p, "unet", ATTENTION), loras.lora_a_b(lambda _: ""))),
    "alphas in the header": ("clip", settings_in_the_header),
    "rank-stabilised": ("clip", rank_stabilised),
    "LoHa": ("clip", loha(rank=2)),
    "LoHa of a high rank": ("clip", loha(rank=7)),
    "DoRA of LyCORIS": ("clip", dora_of_lycoris),
    "DoRA of PEFT": ("clip", dora_of_peft),
    "SDXL, kohya": ("sdxl", sdxl_of_kohya),
    "SDXL, diffusers": ("sdxl", sdxl_of_diffusers),
    "Flux, diffusers": (
        "flux",
        lambda p: loras.file(
            layers(p, "transformer", r".*attn\.(to_q|to_out\.0|add_k_proj)|.*proj_mlp"), loras.diffusers
        ),
    ),
    "Flux, kohya": ("flux", flux_of_black_forest_labs),
}


# Refused


def plain(pipe: Any) -> loras.Weights:
    component = "transformer" if hasattr(pipe, "transformer") else "unet"
    pattern = r".*attn\.to_(q|k)" if component == "transformer" else CROSS
    return loras.file(layers(pipe, component, pattern), loras.diffusers).weights


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Any], loras.Weights]:
    """A good file after this change of its weights."""

    def make(pipe: Any) -> loras.Weights:
        weights = dict(plain(pipe))
        return change(weights) or weights

    return make


def first_half_elsewhere(weights: loras.Weights) -> loras.Weights:
    half = set(list(weights)[: len(weights) // 2])
    return {name.replace("attn2", "attn7") if name in half else name: weight for name, weight in weights.items()}


def without_downs(weights: loras.Weights) -> loras.Weights:
    kept = [name for name in weights if "lora_B" in name][:5]
    return {
        name: weight for name, weight in weights.items() if "lora_A" not in name or name.replace("_A", "_B") not in kept
    }


def with_one(name: str, weight: torch.Tensor) -> Callable[[Any], loras.Weights]:
    return changed(lambda weights: {**weights, name: weight})


def first_replaced(weight: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], loras.Weights]:
    def change(weights: loras.Weights) -> loras.Weights:
        first = next(iter(weights))
        return {**weights, first: weight(weights[first])}

    return changed(change)


def with_text_encoder(pipe: Any) -> loras.Weights:
    """As published for Stable Diffusion 1.5."""
    clip = pipeline("clip")
    return {**plain(pipe), **loras.file(layers(clip, "text_encoder", TEXT), loras.kohya(1.0)).weights}


def of_rank(rank: int) -> Callable[[Any], loras.Weights]:
    return lambda pipe: loras.file(layers(pipe, "unet", CROSS, rank=rank)[:1], loras.diffusers).weights


def with_lengths_of_inputs(pipe: Any) -> loras.Weights:
    chosen = layers(pipe, "unet", CROSS)
    return {
        **loras.file(chosen, loras.kohya()).weights,
        **{f"{loras.kohya_name(layer)}.dora_scale": torch.ones(1, layer.own.shape[1]) for layer in chosen},
    }


def with_complex_alpha(pipe: Any) -> loras.Weights:
    weights = loras.file(layers(pipe, "unet", CROSS), loras.kohya(1.0)).weights
    alpha = next(name for name in weights if name.endswith(".alpha"))
    return {**weights, alpha: torch.tensor(1 + 1j)}


def flux_with_what_the_converter_drops(pipe: Any) -> loras.Weights:
    weights = flux_of_black_forest_labs(pipe).weights
    first, missing = "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_9_img_attn_qkv"
    more = {name.replace(first, missing): weight.clone() for name, weight in weights.items() if name.startswith(first)}
    return {**weights, **more, "lora_te_nowhere.alpha": torch.ones(1)}


# The cross-attention has 8 layers to_k and to_v, so a plain file has 16 weights.
REFUSED: dict[str, tuple[str, Callable[[Any], loras.Weights], str]] = {
    "half fits nothing": ("clip", changed(first_half_elsewhere), "8 of its 16 weights fit nothing in tiny, unet.down_"),
    "all of another model": (
        "clip",
        lambda _: plain(pipeline("flux")),
        "8 of its 8 weights fit nothing in tiny, trans",
    ),
    "SDXL's in SD 1.5": (
        "clip",
        lambda _: sdxl_of_kohya(pipeline("sdxl")).weights,
        "weights fit nothing in tiny, lora_",
    ),
    "SD 1.5's text encoder in a BERT": (
        "bert",
        with_text_encoder,
        "18 of its 34 weights fit nothing in tiny, lora_te_te",
    ),
    "up without down": (
        "clip",
        changed(without_downs),
        "5 of its 11 weights are of layers that lack a counterpart, unet.",
    ),
    "alpha alone": (
        "clip",
        with_one("unet.conv_in.alpha", torch.tensor(1.0)),
        "1 of its 17 weights are of layers that",
    ),
    "other sizes": (
        "clip",
        first_replaced(lambda w: w[:, :3]),
        "2 of its 16 weights have other sizes than in tiny, unet.",
    ),
    "scalars": (
        "clip",
        first_replaced(lambda w: torch.tensor(1.0)),
        "2 of its 16 weights have other sizes than in tiny",
    ),
    "rank 0": ("clip", of_rank(0), "2 of its 2 weights have other sizes than in tiny, unet."),
    "a huge rank": ("clip", of_rank(3000), "it has a rank of 3,000; the most is 2,048."),
    "NaN": (
        "clip",
        first_replaced(lambda w: w * torch.nan),
        "1 of its 16 weights are NaN, infinite or no fractions, unet.",
    ),
    "whole numbers": (
        "clip",
        first_replaced(lambda w: w.to(torch.int8)),
        "1 of its 16 weights are NaN, infinite or no frac",
    ),
    "packed in eight bits": ("clip", first_replaced(lambda w: w.to(torch.uint8)), "1 of its 16 weights are NaN, infin"),
    "complex alpha": ("clip", with_complex_alpha, "1 of its 24 weights are NaN, infinite or no fractions, lora_"),
    "LoKr": (
        "clip",
        with_one("lora_unet_mid_block.lokr_w1", torch.ones(2, 2)),
        "it is a LoKr, which no model here can draw",
    ),
    "full difference": (
        "clip",
        with_one("lora_unet_conv_in.diff", torch.ones(4)),
        "it is a full difference of weights,",
    ),
    "DoRA by inputs": (
        "clip",
        with_lengths_of_inputs,
        "it is a DoRA with a length for each input, which no model here",
    ),
    "with biases": ("clip", with_one("unet.conv_in.lora_B.bias", torch.ones(4)), "it is a LoRA with biases, which no"),
    "textual inversion": (
        "clip",
        lambda _: {"emb_params": torch.ones(2, 32)},
        "it is none. Not one of its 1 weights has a name",
    ),
    "a whole UNet": ("clip", lambda p: p.unet.state_dict(), "it is none. Not one of its"),
    "empty": ("clip", lambda _: {}, "its file has no weights."),
    "Flux with layers unknown": (
        "flux",
        flux_with_what_the_converter_drops,
        "4 of its 13 weights fit nothing in tiny, lora_",
    ),
    "a twin of a weight": (
        "clip",
        changed(
            lambda w: {
                **w,
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": torch.ones(2, 32),
            }
        ),
        "1 of its 17 weights fit nothing in tiny, ",
    ),
}


@pytest.fixture
def activate(tmp_path: Path) -> Callable[[Any, File, float], LoraAdapters]:
    def activate(pipe: Any, file: File, weight: float = WEIGHT) -> LoraAdapters:
        path = tmp_path / "lora.safetensors"
        save_file({name: value.contiguous() for name, value in file.weights.items()}, path, file.metadata)
        lora = Lora("ink", str(path), sha256(path.read_bytes()), "none", "", "", path, family="any")
        adapters = LoraAdapters(entry(tmp_path, loras={"ink": lora}), pipe)
        adapters.activate((LoraUse(name="ink", weight=weight),))
        return adapters

    return activate


def drawn_by_hand(pipe: Any, file: File, weight: float) -> np.ndarray:
    owns = {}
    try:
        with torch.no_grad():
            for (component, name), change in file.by_hand.items():
                own = getattr(pipe, component).get_submodule(name).weight
                owns[component, name] = own.clone()
                own += weight * change
        return loras.draw(pipe)
    finally:
        with torch.no_grad():
            for (component, name), before in owns.items():
                getattr(pipe, component).get_submodule(name).weight.copy_(before)


@pytest.mark.parametrize("row", DRAWN)
def test_it_draws_as_the_weights_changed_by_hand_and_without_it_all_is_as_before(row: str, activate: Any) -> None:
    kind, make = DRAWN[row]
    pipe = pipeline(kind)
    file, before = make(pipe), untouched(kind)
    by_hand = drawn_by_hand(pipe, file, WEIGHT)
    assert (np.abs(by_hand - before) >= 8).mean() >= 0.01
    adapters = activate(pipe, file)
    assert np.abs(loras.draw(pipe) - by_hand).max() <= 1
    adapters.deactivate()
    assert (loras.draw(pipe) == before).all()


@pytest.mark.parametrize("row", REFUSED)
def test_it_is_refused_whole_at_once_and_leaves_all_as_before(row: str, activate: Any) -> None:
    kind, make, reason = REFUSED[row]
    pipe = pipeline(kind)
    before = untouched(kind)
    with pytest.raises(LoraRefused) as refused:
        activate(pipe, File(make(pipe)))
    assert reason in refused.value.message
    assert not refused.value.retryable
    assert (loras.draw(pipe) == before).all()


def test_each_layer_of_a_unet_is_found_by_its_name_in_the_original(tmp_path: Path) -> None:
    ours = load_file(checkpoints.make(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = [name for name in checkpoints.as_one_file(tmp_path) if name.startswith("model.diffusion_model.")]
    pipe = SimpleNamespace(components={"unet": checkpoint_unet()}, _lora_loadable_modules=["unet"])
    known, found = Layers(pipe), {}
    for our, their in zip(ours, theirs, strict=True):
        layer = pipe.components["unet"].get_submodule(our.removesuffix(".weight").removesuffix(".bias"))
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            name = their.removeprefix("model.diffusion_model.").rpartition(".")[0].replace(".", "_")
            found[our.rpartition(".")[0]] = known.find(f"lora_unet_{name}")
    assert len(found) > 200
    assert {our: place for our, place in found.items() if place != ("unet", our)} == {}


@pytest.mark.parametrize("make", [dora_of_peft, unet_and_text])
def test_of_weight_zero_it_changes_nothing(make: Any, activate: Any) -> None:
    pipe = pipeline("clip")
    adapters = activate(pipe, make(pipe), 0.0)
    assert (loras.draw(pipe) == untouched("clip")).all()
    adapters.deactivate()


def test_a_failure_half_way_leaves_none_of_it(activate: Any) -> None:
    pipe = pipeline("clip")
    file = File(plain(pipe))
    *_, last = file.weights
    layer = pipe.unet.get_submodule(last.removeprefix("unet.").partition(".lora_")[0])
    layer.lora0_up = "in the way"
    with pytest.raises(KeyError, match="lora0_up"):
        activate(pipe, file)
    del layer.lora0_up
    assert [name for name, _ in pipe.unet.named_buffers() if "lora" in name] == []
    assert (loras.draw(pipe) == untouched("clip")).all()


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[]",
        '{"unet.lora_alpha": "8"}',
        '{"unet.alpha_pattern": {"attn9": 2}}',
        '{"unet.lora_alpha": 1e999}',
        '{"unet.lora_alpha": 1' + "0" * 400 + "}",
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: str, activate: Any) -> None:
    pipe = pipeline("clip")
    with pytest.raises(LoraRefused, match="its settings in the file's header cannot be followed"):
        activate(pipe, File(plain(pipe), metadata={"lora_adapter_metadata": settings}))


def test_a_model_whose_pipeline_has_no_loader_takes_none(activate: Any) -> None:
    with pytest.raises(LoraRefused, match="tiny is of a kind that takes no LoRAs"):
        activate(SimpleNamespace(components={}), File(plain(pipeline("clip"))))
