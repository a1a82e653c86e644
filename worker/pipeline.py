"""A painter with a diffusers pipeline in memory: any checkpoint laid out as Stable Diffusion's, with Bert or CLIP.

The only module that imports torch and diffusers, so import it late. A model is loaded part by part from its files,
never with code of its own, and is refused when anything of it is missing. Knows nothing of jobs, leases or storage.
"""

import gc
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub.utils.tqdm import disable_progress_bars

from common import prompts
from common.catalog import Model
from common.errors import Invalid, NanImage, OutOfMemory, PromptRefused, RenderFailed
from worker import checkpoint
from worker.painter import DeviceLost, OnStep, Picture, Stroke

Config = dict[str, Any]
TEXT_ENCODERS = ("BertModel", "CLIPTextModel")

# steps_offset, skip_prk_steps: what Stable Diffusion was trained for; 2022 checkpoints leave them out of their files.
# clip_sample: latents are not pixels; clipping them ruins the picture.
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "steps_offset": 1}),
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "kdpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "steps_offset": 1}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
}

# What CUDA, cuBLAS and cuDNN say when nothing can be computed in this process any more.
LOST = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
)

for library in (transformers, diffusers):  # what they warn of is checked here, and refused in words of our own
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
disable_progress_bars()


def load(model: Model, device: str = "auto", threads: int | None = None) -> "Diffusers":
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(_choose(device))
    try:
        folder, revision = checkpoint.find(model)
        return Diffusers(model, revision, *_assemble(model, folder, where))
    except RenderFailed:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        if _is_out_of_memory(error):
            raise OutOfMemory(f"The model {model.name} does not fit into the memory of {where}.") from error
        if _is_lost(error):
            raise DeviceLost(_first_line(error)) from error
        raise checkpoint.refused(model, f"it cannot be loaded ({_first_line(error)})") from error


def describe(device: str = "auto", threads: int | None = None) -> dict[str, str | int | None]:
    chosen = _choose(device)
    kind = chosen.partition(":")[0]
    return {
        "device": kind,
        "name": torch.cuda.get_device_name(chosen) if kind == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "precision": "fp16" if kind == "cuda" else "fp32",
        "threads": (threads or torch.get_num_threads()) if kind == "cpu" else None,
    }


class Diffusers:
    def __init__(self, model: Model, revision: str | None, pipe: Any, scheduler_config: Config) -> None:
        self.model = model
        self.revision = revision
        self._pipe = pipe
        self._scheduler_config = scheduler_config

    def paint(self, strokes: Sequence[Stroke], on_step: OnStep) -> list[Picture | RenderFailed]:
        refusals = [self._refusal(stroke) for stroke in strokes]
        fitting = [stroke for stroke, refusal in zip(strokes, refusals, strict=True) if refusal is None]
        try:
            painted = iter(self._paint(fitting, on_step) if fitting else ())
        except RuntimeError as error:
            if _is_lost(error):
                raise DeviceLost(_first_line(error)) from error
            raise
        return [refusal or next(painted) for refusal in refusals]

    def close(self) -> None:
        self._pipe = None
        _free_memory()

    def _refusal(self, stroke: Stroke) -> PromptRefused | None:
        """The pipeline would cut a prompt that is too long, and say so in its log only."""
        tokenizer = self._pipe.tokenizer
        for field in ("prompt", "negative_prompt"):
            count = len(tokenizer(getattr(stroke.recipe, field)).input_ids)
            if count > tokenizer.model_max_length:
                return PromptRefused(f"{field} {prompts.too_long(count, self.model.name, tokenizer.model_max_length)}.")
        return None

    def _paint(self, strokes: Sequence[Stroke], on_step: OnStep) -> list[Picture | RenderFailed]:
        painted = self._once(strokes, on_step)
        broken = [place for place, picture in enumerate(painted) if isinstance(picture, NanImage)]
        if broken and self._pipe.unet.dtype == torch.float16:
            again = self._precisely([strokes[place] for place in broken], on_step)
            for place, picture in zip(broken, again, strict=False):
                painted[place] = picture
        return painted

    def _precisely(self, strokes: Sequence[Stroke], on_step: OnStep) -> list[Picture | RenderFailed]:
        """In fp32, one by one, for it takes twice the memory; none when there is not even that."""
        try:
            self._pipe.to(torch.float32)
            return [picture for stroke in strokes for picture in self._once([stroke], on_step)]
        except (RuntimeError, OutOfMemory) as error:
            if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                raise
            return []
        finally:
            self._pipe.to(torch.float16)  # exactly what it was: every number of fp16 is one of fp32

    def _once(self, strokes: Sequence[Stroke], on_step: OnStep) -> list[Picture | RenderFailed]:
        output = self._call(strokes, on_step)
        if output is None:  # only now, for until here the traceback held the tensors
            _free_memory()
            recipe = strokes[0].recipe
            raise OutOfMemory(f"Out of memory with {len(strokes)} images of {recipe.width}×{recipe.height} at once.")
        broken = output.images.isnan().flatten(1).any(1).tolist()
        flags = output.nsfw_content_detected or [False] * len(strokes)
        pixels = (output.images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [
            NanImage(f"{self.model.name} painted numbers that are none.") if nan else Picture(picture, flag)
            for picture, flag, nan in zip(pixels, flags, broken, strict=True)
        ]

    def _call(self, strokes: Sequence[Stroke], on_step: OnStep) -> Any | None:
        """None when the memory did not suffice."""
        recipe = strokes[0].recipe
        assert all(stroke.recipe.compatibility == recipe.compatibility for stroke in strokes)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, pipe.num_timesteps)
            return tensors

        self._pipe.scheduler = _scheduler(recipe.scheduler, self._scheduler_config)
        try:
            return self._pipe(
                prompt=[stroke.recipe.prompt for stroke in strokes],
                negative_prompt=[stroke.recipe.negative_prompt for stroke in strokes],
                width=recipe.width,
                height=recipe.height,
                num_inference_steps=recipe.steps,
                guidance_scale=recipe.guidance,
                generator=[torch.Generator("cpu").manual_seed(stroke.seed) for stroke in strokes],
                output_type="pt",
                callback_on_step_end=after_step,
            )
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            return None


def _scheduler(name: str, config: Config) -> Any:
    """A new one for every call: schedulers remember."""
    kind, settings = SCHEDULERS[name]
    return kind.from_config({"set_alpha_to_one": False, **config}, **settings)


# Loading


def _assemble(model: Model, folder: Path, device: torch.device) -> tuple[Any, Config]:
    for name in checkpoint.weighted(model):
        for file in checkpoint.weights(folder / name):
            _plain_tensors(model, file)
    half = model.fp16 and device.type == "cuda"
    dtype = torch.float16 if half else torch.float32

    def part(kind: Any, name: str) -> Any:
        return _part(model, kind, folder / name, dtype).to(device)

    kind = checkpoint.index(folder)["text_encoder"][1]
    if kind not in TEXT_ENCODERS:
        raise checkpoint.refused(model, f"its text encoder is a {kind}, not one of {', '.join(TEXT_ENCODERS)}")
    text_encoder = part(getattr(transformers, kind), "text_encoder")
    checker = part(StableDiffusionSafetyChecker, "safety_checker") if model.safety_checker else None
    config: Config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    pipe: Any = diffusers.StableDiffusionPipeline(
        vae=part(diffusers.AutoencoderKL, "vae"),
        text_encoder=text_encoder,
        tokenizer=_tokenizer(model, folder / "tokenizer", text_encoder),
        unet=part(diffusers.UNet2DConditionModel, "unet"),
        scheduler=_scheduler("ddim", config),
        safety_checker=checker,
        feature_extractor=_feature_extractor(folder) if checker else None,
        requires_safety_checker=model.safety_checker,
    )
    pipe.set_progress_bar_config(disable=True)
    if device.type == "cuda":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    return pipe, config


def _part(model: Model, kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    safe = checkpoint.weights(folder)[0].suffix == ".safetensors"
    is_diffusers = issubclass(kind, diffusers.ModelMixin)
    precision = {"torch_dtype" if is_diffusers else "dtype": dtype}
    part, info = kind.from_pretrained(
        folder, use_safetensors=safe, output_loading_info=True, local_files_only=True, **precision
    )
    if missing := sorted(info["missing_keys"]):
        raise checkpoint.refused(model, f"its {folder.name} lacks {len(missing)} weights, {missing[0]} among them")
    return part.eval()


def _plain_tensors(model: Model, file: Path) -> None:
    """A pickle can run code. With `weights_only` it cannot, and then nothing but tensors may come out of it."""
    if file.suffix == ".safetensors":
        return
    where = f"{file.parent.name}/{file.name}"
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise checkpoint.refused(model, f"{where} is no pickle of plain tensors: it could run code") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise checkpoint.refused(model, f"{where} is damaged or cut short ({_first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise checkpoint.refused(model, f"{where} is no pickle of plain tensors")


def _tokenizer(model: Model, folder: Path, text_encoder: Any) -> Any:
    """Reads special tokens in a prompt as text, and is never longer than the text encoder or the catalogue's limit."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, split_special_tokens=True, trust_remote_code=False, local_files_only=True
    )
    known, needed = len(tokenizer), text_encoder.config.vocab_size
    if known != needed:
        raise checkpoint.refused(model, f"its tokenizer knows {known} tokens and its text encoder {needed}")
    longest = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest, model.token_limit)
    return tokenizer


def _feature_extractor(folder: Path) -> Any:
    return transformers.CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)


# Device and memory


def _choose(device: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind, is_there in there.items() if is_there]
    if device == "auto":
        return found[0]
    if device.partition(":")[0] not in found:
        raise Invalid(f"There is no device {device} here, only {', '.join(found)}.")
    return device


def _is_out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "out of memory" in said
        or "can't allocate memory" in said
        or "not enough memory" in said
    )


def _is_lost(error: BaseException) -> bool:
    said = str(error).lower()
    return any(sentence in said for sentence in LOST)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
