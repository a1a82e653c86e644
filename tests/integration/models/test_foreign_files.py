"""What foreign and broken single files get: the picture of the plain one, or one sentence. None runs code."""

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isal import isal_zlib

from tests.integration.models.test_cli import Evil
from tests.support import checkpoints, foreign
from tests.support.foreign import LFS, READ, Make, Plain, Rows, endless, save, tar


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoints.as_one_file(folder)


class Callback:
    """What pickles by its name: none of the classes that training runs leave is installed here."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


def left_by_lightning(folder: Path) -> dict[str, Any]:
    """All that PyTorch Lightning saves, with objects of its own and of others."""
    seen: defaultdict[str, list[Any]] = defaultdict(list, {"a": [torch.zeros(2), Path("x")]})
    return {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(whole(folder)),
        "callbacks": {Callback: {"best": torch.tensor(1.5), "dirpath": Path("logs"), "k": Callback(a={1, 2}, b=seen)}},
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [Callback(array=np.arange(3), scalar=np.float64(2.5))],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(unet=frozenset({"x"}), size=torch.Size([1, 2])),
    }


def saved(name: str, content: Callable[[Path], Any] = whole, **options: Any) -> Make:
    def make(folder: Path) -> Path:
        torch.save(content(folder), folder.with_name(name), **options)
        return folder.with_name(name)

    return make


def safetensors(name: str) -> Make:
    return lambda folder: save(folder.with_name(name), whole(folder))


def evil(folder: Path) -> Evil:
    return Evil(folder.with_name("trace"))


FILES: Rows = {
    "Lightning with callbacks": (saved("a.ckpt", left_by_lightning), READ),
    "Lightning with no callbacks": (
        saved("a.ckpt", lambda f: {"state_dict": whole(f), "callbacks": {}, "optimizer_states": []}),
        READ,
    ),
    "Lightning before 2020": (saved("a.ckpt", left_by_lightning, _use_new_zipfile_serialization=False), READ),
    "Lightning, pickled anew": (saved("a.ckpt", left_by_lightning, pickle_protocol=4), READ),
    "code in a callback": (
        saved("a.ckpt", lambda f: {"state_dict": whole(f), "callbacks": {"a": evil(f)}, "x": [evil(f)] * 3}),
        READ,
    ),
    ".CKPT": (saved("A.CKPT"), READ),
    "safetensors called .ckpt": (safetensors("a.ckpt"), READ),
    "a pickle called .SafeTensors": (saved("a.SafeTensors"), READ),
    ".pt in halves": (saved("a.pt", lambda f: {key: value.half() for key, value in whole(f).items()}), READ),
    ".pth of parameters": (saved("a.pth", lambda f: {k: torch.nn.Parameter(v) for k, v in whole(f).items()}), READ),
}


def raw(name: str, content: bytes) -> Make:
    def make(folder: Path) -> Path:
        folder.with_name(name).write_bytes(content)
        return folder.with_name(name)

    return make


def keys(**shapes: tuple[int, ...]) -> Make:
    """Safetensors of these names, in which `__` is a dot."""
    return lambda f: save(
        f.with_name("a.safetensors"), {k.replace("__", "."): torch.zeros(s) for k, s in shapes.items()}
    )


def archive(name: str, compression: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Make:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder.with_name(name), "w", compression) as made:
            for member, content in members.items():
                made.writestr(f"archive/{member.replace('__', '.')}", content)
        return folder.with_name(name)

    return make


def bomb(folder: Path) -> Path:
    """500 MB in half a megabyte."""
    file = folder.with_name("a.ckpt")
    torch.save({"state_dict": {"a": torch.zeros(4)}}, file)
    with zipfile.ZipFile(file) as made:
        members = {name: made.read(name) for name in made.namelist()}
    squeeze, data = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -15), bytes(10**7)
    zeros = b"".join([squeeze.compress(data) for _ in range(50)] + [squeeze.flush()])
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
        info = zipfile.ZipInfo("archive/data/1")
        made.writestr(info, zeros)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, 500_000_000
    return file


def of_big_endian(folder: Path) -> Path:
    """As torch.save writes on such a machine: it does not swap the bytes of the numbers."""
    file = saved("a.ckpt")(folder)
    with zipfile.ZipFile(file) as made:
        members = {name: made.read(name) for name in made.namelist()}
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name, b"big" if name.endswith("/byteorder") else content)
    return file


def cut(make: Make) -> Make:
    def shorten(folder: Path) -> Path:
        file: Path = make(folder)
        os.truncate(file, file.stat().st_size * 2 // 3)
        return file

    return shorten


def script(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(1, 1)).save(folder.with_name("a.pt"))
    return folder.with_name("a.pt")


def beyond(size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of a tensor of four numbers that is said to be larger."""

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Stored(), 0, size, stride, False, OrderedDict())

    class Stored:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 4) if isinstance(value, Stored) else None

    content = io.BytesIO()
    Pickler(content, protocol=2).dump({"state_dict": {"a": Rebuilt()}})
    return content.getvalue()


LORA = (8, 4)
REFUSED_FILES: Rows = {
    "a Git LFS pointer": (raw("a.safetensors", LFS), "a.safetensors is a Git LFS pointer and not the file itself"),
    "a page": (raw("a.safetensors", b"\n<!DOCTYPE html><html>403"), "a.safetensors is a page of the web"),
    "an error of S3": (raw("a.ckpt", b'<?xml version="1.0"?><Error>'), "a.ckpt is a page of the web"),
    "empty": (raw("a.ckpt", b""), "a.ckpt is empty; get it again"),
    "zeros": (raw("a.safetensors", bytes(5000)), "a.safetensors is zeros, as a broken download leaves them"),
    "GGUF": (raw("a.gguf", b"GGUF\x03\x00\x00\x00"), "a.gguf is quantised (GGUF), which this farm cannot read"),
    "ONNX": (raw("a.onnx", b"\x08\x07\x12\x07pytorch\x1a\x05"), "a.onnx is ONNX, which this farm cannot read"),
    "TensorRT": (raw("a.engine", b"ftrt\x00\x00"), "a.engine is an engine of TensorRT"),
    "7z": (raw("a.7z", b"7z\xbc\xaf\x27\x1c\x00"), "a.7z is an archive; unpack it"),
    "gzip": (raw("a.ckpt", b"\x1f\x8b\x08\x00"), "a.ckpt is an archive; unpack it"),
    "a zip of a folder": (archive("a.zip", model_index__json=b"{}"), "a.zip is an archive; unpack it"),
    "a picture": (raw("a.safetensors", b"\x89PNG\r\n\x1a\n"), "a.safetensors is a picture"),
    "a tar of old": (tar, "a.pth is a tar; if torch wrote it before 2017, save it again"),
    "text": (raw("a.yaml", b"model: ldm"), "a.yaml is none of .bin, .ckpt, .pt, .pth, .safetensors"),
    "text called .ckpt": (raw("a.ckpt", b"hello"), "a.ckpt is damaged or cut short"),
    "safetensors cut short": (cut(safetensors("a.safetensors")), "a.safetensors is damaged or cut short"),
    "a pickle cut short": (cut(saved("a.ckpt")), "a.ckpt is damaged or cut short"),
    "an old pickle cut short": (cut(saved("a.pt", _use_new_zipfile_serialization=False)), "is damaged or cut short"),
    "numbers of a big-endian machine": (
        of_big_endian,
        "a.ckpt is damaged or cut short (its bytes are in another order",
    ),
    "a zip bomb": (bomb, "and would take 500,"),
    "a tensor beyond its storage": (
        archive("a.ckpt", zipfile.ZIP_STORED, data__pkl=beyond((2, 4), (4, 1)), **{"data/0": bytes(16)}),
        "a.ckpt is damaged or cut short",
    ),
    "a tensor of one number, 4 GB": (
        saved("a.ckpt", lambda f: {"a": torch.zeros(1).expand(10**9)}),
        "would take 4,000,000,000 in memory",
    ),
    "a key that takes for ever": (
        endless,
        "a key that is no text or number",
    ),
    "a pickle without an end": (
        archive("a.ckpt", zipfile.ZIP_STORED, data__pkl=b"\x80\x02" + b"]" * 1000),
        "a.ckpt is damaged or cut short",
    ),
    "a pickle of 9 MB": (
        archive("a.ckpt", zipfile.ZIP_STORED, data__pkl=b"\x80\x02" + b"]0" * 4_500_000 + b"}."),
        "a.ckpt is damaged or cut short (torch.save writes no such zip)",
    ),
    "a script": (script, "a.pt is no pickle of plain tensors, so it could run code"),
    "code for a tensor": (
        saved("a.ckpt", lambda f: {"state_dict": {"a": evil(f)}}),
        "a.ckpt is no pickle of plain tensors",
    ),
    "code for a state": (saved("a.ckpt", lambda f: {"state_dict": evil(f)}), "a.ckpt is no pickle of plain tensors"),
    "only code": (saved("a.pt", evil), "a.pt is no pickle of plain tensors"),
    "a whole module": (saved("a.pt", lambda f: torch.nn.Linear(1, 1)), "a.pt is no pickle of plain tensors"),
    "no state": (saved("a.ckpt", lambda f: {"state_dict": {}, "callbacks": {}}), "a.ckpt holds no weights"),
    "SDXL": (keys(conditioner__embedders__0__transformer__a=(1,)), "a.safetensors is an SDXL, which"),
    "SDXL by its context": (
        keys(model__diffusion_model__output_blocks__3__1__transformer_blocks__0__attn2__to_k__weight=(4, 2048)),
        "is an SDXL",
    ),
    "Stable Diffusion 2": (keys(cond_stage_model__model__transformer__resblocks__0__a=(1,)), "a Stable Diffusion 2.x"),
    "Stable Diffusion 3": (keys(model__diffusion_model__joint_blocks__0__a=(1,)), "is a Stable Diffusion 3"),
    "Flux": (keys(double_blocks__0__img_attn__qkv__weight=(1,)), "is a Flux, which"),
    "Flux 2": (keys(double_stream_modulation_img__lin__weight=(1,), double_blocks__0__a=(1,)), "is a Flux 2"),
    "Z-Image": (keys(model__diffusion_model__cap_embedder__0__weight=(1,)), "is a Z-Image or Lumina"),
    "Qwen-Image": (keys(transformer_blocks__0__img_mlp__net__0__proj__weight=(1,)), "is a Qwen-Image"),
    "Wan": (keys(patch_embedding__weight=(1,)), "is a model for video"),
    "AnimateDiff": (keys(down_blocks__0__motion_modules__0__a=(1,)), "is a model for video"),
    "a LoRA of kohya": (keys(lora_unet_down_blocks_0__lora_down__weight=LORA, x__alpha=()), "is a LoRA, which"),
    "a LoRA of diffusers": (keys(unet__down_blocks__0__to_q__lora__up__weight=LORA), "is a LoRA, which"),
    "a LoRA of PEFT": (keys(base_model__model__down_blocks__0__to_q__lora_A__weight=LORA), "is a LoRA, which"),
    "an old LoRA": (keys(down_blocks__0__attn1__processor__to_q_lora__down__weight=LORA), "is a LoRA, which"),
    "a LoHa": (keys(lora_unet_down_blocks_0__hada_w1_a=LORA), "is a LoRA, which"),
    "a ControlNet": (keys(control_model__input_blocks__0__0__weight=(1,)), "is a ControlNet, which"),
    "an IP-Adapter": (keys(image_proj__proj__weight=(1,), ip_adapter__1__to_k_ip__weight=(1,)), "is an IP-Adapter"),
    "a T2I-Adapter": (keys(adapter__body__0__in_conv__weight=(1,)), "is a T2I-Adapter"),
    "an embedding": (
        saved("a.pt", lambda f: {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 8)}}),
        "a.pt is an embedding (textual inversion)",
    ),
    "an embedding of diffusers": (saved("a.bin", lambda f: {"<cat>": torch.zeros(8)}), "a.bin is an embedding"),
    "an embedding in safetensors": (keys(emb_params=(2, 8)), "is an embedding"),
    "a hypernetwork": (
        saved("a.pt", lambda f: {768: [{"linear.0.weight": torch.zeros(2)}], "activation_func": "relu", "step": 1}),
        "a.pt is a hypernetwork",
    ),
    "a VAE": (keys(encoder__down__0__block__0__a=(1,), decoder__conv_in__weight=(1,)), "is a VAE alone"),
    "foreign weights in the UNet": (
        saved("a.ckpt", lambda f: {**whole(f), "model.diffusion_model.style.weight": torch.zeros(1)}),
        "its file has 1 weights more for the unet than a model of this kind takes",
    ),
    "a UNet": (keys(model__diffusion_model__out__0__weight=(1,)), "is a UNet alone, without VAE"),
    "a UNet of diffusers": (keys(down_blocks__0__resnets__0__a=(1,), conv_in__weight=(1,)), "is a UNet alone"),
    "a text encoder": (keys(text_model__embeddings__position_embedding__weight=(1,)), "is a text encoder alone"),
    "T5": (keys(encoder__block__0__layer__0__SelfAttention__k__weight=(1,)), "is a text encoder alone"),
    "a language model": (keys(model__layers__0__self_attn__k_proj__weight=(1,)), "is a language model"),
    "an upscaler": (saved("a.pth", lambda f: {"params_ema": {"a": torch.zeros(1)}}), "a.pth is an upscaler"),
    "nine channels": (
        keys(model__diffusion_model__input_blocks__0__0__weight=(4, 9, 3, 3)),
        "is an inpainting model (9 input channels)",
    ),
    "eight channels": (
        keys(model__diffusion_model__input_blocks__0__0__weight=(4, 8, 3, 3)),
        "is an InstructPix2Pix (8 input channels)",
    ),
}


ROWS = FILES | REFUSED_FILES


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:TypedStorage is deprecated:UserWarning")
def test_what_a_file_gets(plain: Plain, tmp_path: Path, row: str) -> None:
    foreign.check(plain, tmp_path, *ROWS[row])
