"""A painter with a diffusers pipeline in memory: any checkpoint laid out as Stable Diffusion's, with Bert or CLIP.

Imports torch and diffusers, so import it late. How a pipeline is put together is in `worker.pipelines.loader`, what
it paints on in `worker.pipelines.device`. Knows nothing of jobs, leases or storage.
"""

import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.functional import interpolate

from common.catalog.catalog import Model
from common.errors import LoraRefused, NanImage, OutOfMemory, PromptRefused, RenderFailed
from common.recipes import prompt_weighting, token_counter
from common.recipes.recipe import Recipe
from worker.pipelines import batch_size, checkpoint
from worker.pipelines.base import DeviceLost, ImageRequest, OnStep, RenderedImage
from worker.pipelines.checkpoint import first_line
from worker.pipelines.checkpoint import sizes as model_components
from worker.pipelines.device import choose, describe, free_memory, is_lost, is_out_of_memory, memory_limit, model_memory
from worker.pipelines.img2img import Img2Img
from worker.pipelines.loader import Config, load_pipeline, precision, scheduler
from worker.pipelines.lora import LoraAdapters
from worker.pipelines.prompt_embeds import encode_prompts

__all__ = [
    "StableDiffusion",
    "clip_input",
    "describe",
    "load",
    "model_components",
    "model_memory",
]  # some pass through here only

TRIAL_STEPS = 2
BICUBIC = 3  # in the words of Pillow


def load(model: Model, device: str = "auto", threads: int | None = None) -> "StableDiffusion":
    if threads:
        torch.set_num_threads(threads)
    where = torch.device(choose(device))
    try:
        painter = StableDiffusion(model, where, *load_pipeline(model, checkpoint.find(model), where))
        if model.compile:
            painter.warm_up()
        return painter
    except RenderFailed:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the libraries raise
        if is_out_of_memory(error):
            raise OutOfMemory(f"The model {model.name} does not fit into the memory of {where}.") from error
        if is_lost(error):
            raise DeviceLost(first_line(error)) from error
        raise checkpoint.refused(model, f"it cannot be loaded ({first_line(error)})") from error


class StableDiffusion:
    def __init__(self, model: Model, device: torch.device, pipe: Any, scheduler_config: Config) -> None:
        self.model = model
        self.revision = model.revision
        self.details = {"precision": precision(model, device.type), **({"compiled": True} if model.compile else {})}
        assert model.source_path
        self.parts: Mapping[Hashable, int] = {
            checkpoint.component_id(model, model.source_path, name): sum(
                tensor.nbytes for tensor in (*part.parameters(), *part.buffers())
            )
            for name, part in pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        self._device = device
        self._pipe = pipe
        self._scheduler_config = scheduler_config
        self._loras = LoraAdapters(model, pipe)

    def paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        refusals = [self._refusal(stroke) for stroke in strokes]
        fitting = [stroke for stroke, refusal in zip(strokes, refusals, strict=True) if refusal is None]
        try:
            self._loras.put_on(strokes[0].recipe.lora)
            painted = iter(self._paint(fitting, on_step) if fitting else ())
        except LoraRefused as error:
            return [error for _ in strokes]
        except RuntimeError as error:
            if is_lost(error):
                raise DeviceLost(first_line(error)) from error
            if is_out_of_memory(error):
                raise OutOfMemory(f"Out of memory with the LoRAs of {self.model.name}.") from error
            raise
        return [refusal or next(painted) for refusal in refusals]

    def find_capacity(self, reserved: int) -> int:
        if self._device.type == "cpu" and self._is_slow():
            return 1
        self._try_out(1)  # the first call of all takes longer than any other
        with memory_limit(self._device, reserved):
            return batch_size.find_batch_size(self._try_out)

    def _is_slow(self) -> bool:
        """Whether one image keeps the device busy for long: company gains nothing then, and takes too long to try."""
        side, began = self.model.min_side, time.monotonic()
        self._try_out(1, side, side)
        times = self.model.width * self.model.height / side**2
        return times * (time.monotonic() - began) > batch_size.TRIAL_S

    def warm_up(self) -> None:
        """Compile what is to be compiled: for one image, and for however many."""
        for images in (1, 2):
            self._try_out(images)

    def close(self) -> None:
        self._pipe = None
        self._loras = LoraAdapters(self.model, None)  # the others hold the pipeline, too
        free_memory()

    def _refusal(self, stroke: ImageRequest) -> PromptRefused | None:
        """The pipeline would cut a prompt that is too long, and say so in its log only."""
        tokenizer = self._pipe.tokenizer
        for field in ("prompt", "negative_prompt"):
            count = len(tokenizer(prompt_weighting.strip_weights(getattr(stroke.recipe, field))).input_ids)
            if count > tokenizer.model_max_length:
                return PromptRefused(
                    f"{field} {token_counter.too_long(count, self.model.name, tokenizer.model_max_length)}."
                )
        return None

    def _paint(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        painted = self._once(strokes, on_step)
        broken = [place for place, picture in enumerate(painted) if isinstance(picture, NanImage)]
        if broken and self._pipe.unet.dtype != torch.float32:
            again = self._precisely([strokes[place] for place in broken], on_step)
            for place, picture in zip(broken, again, strict=False):
                painted[place] = picture
        return painted

    def _precisely(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        """In fp32, one by one, for it takes twice the memory; none when there is not even that."""
        usual = self._pipe.unet.dtype
        try:
            self._pipe.to(torch.float32)
            # To compile it again takes longer than a picture or two.
            with self._uncompiled():
                return [picture for stroke in strokes for picture in self._once([stroke], on_step)]
        except (RuntimeError, OutOfMemory) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            return []
        finally:
            self._pipe.to(usual)  # exactly what it was: every number of fp16 or bf16 is one of fp32

    def _once(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        drawn = self._draw(strokes, on_step)
        if drawn is None:  # only now, for until here the traceback held the tensors
            free_memory()
            recipe = strokes[0].recipe
            raise OutOfMemory(f"Out of memory with {len(strokes)} images of {recipe.width}×{recipe.height} at once.")
        pixels, flags, broken = drawn
        return [
            NanImage(f"{self.model.name} painted numbers that are none.") if nan else RenderedImage(picture, flag)
            for picture, flag, nan in zip(pixels.cpu().numpy(), flags, broken, strict=True)
        ]

    def _draw(
        self, strokes: Sequence[ImageRequest], on_step: OnStep
    ) -> tuple[torch.Tensor, list[bool], list[bool]] | None:
        """Pixels, whether they are flagged, and whether they are no numbers; None when the memory did not suffice."""
        try:
            return self._decoded(*self._denoised(strokes, on_step))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _denoised(self, strokes: Sequence[ImageRequest], on_step: OnStep) -> tuple[torch.Tensor, Img2Img | None]:
        recipe = strokes[0].recipe
        assert all(stroke.recipe.compatibility == recipe.compatibility for stroke in strokes)

        self._pipe.scheduler = scheduler(recipe.scheduler, self._scheduler_config)
        generators = [torch.Generator("cpu").manual_seed(stroke.seed) for stroke in strokes]
        under = Img2Img(self._pipe, strokes, generators) if recipe.source else None

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, pipe.num_timesteps)
            return {"latents": under.after_step(step, tensors["latents"])} if under else tensors

        with self._uncompiled() if recipe.lora else nullcontext():  # they change what was compiled
            latents: torch.Tensor = self._pipe(
                **encode_prompts(
                    self._pipe,
                    [stroke.recipe.prompt for stroke in strokes],
                    [stroke.recipe.negative_prompt for stroke in strokes],
                    recipe.guidance,
                ),
                width=recipe.width,
                height=recipe.height,
                num_inference_steps=recipe.steps,
                guidance_scale=recipe.guidance,
                generator=generators,
                latents=under.latents if under else None,
                output_type="latent",
                callback_on_step_end=after_step,
            ).images
        return latents, under

    def _uncompiled(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self.model.compile else nullcontext()

    @torch.no_grad()
    def _decoded(self, latents: torch.Tensor, under: Img2Img | None) -> tuple[torch.Tensor, list[bool], list[bool]]:
        """All of it on the device, where the pipeline would turn every picture into one of Pillow's to check it."""
        vae = self._pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0].float()
        broken = images.isnan().flatten(1).any(1)
        levels = ((images * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.permute(0, 2, 3, 1).contiguous()  # as files want them, so that nobody need copy them again
        pixels = under.over(pixels) if under else pixels
        return pixels, self._flags(pixels), broken.tolist()

    def _flags(self, pixels: torch.Tensor) -> list[bool]:
        checker = self._pipe.safety_checker
        if checker is None:
            return [False] * len(pixels)
        seen = clip_input(pixels, self._pipe.feature_extractor).to(checker.dtype)
        flags: list[bool] = checker(images=pixels, clip_input=seen)[1]  # and blackens what it flags
        return flags

    # Trying out

    def _try_out(self, images: int, width: int | None = None, height: int | None = None) -> float | None:
        """Seconds that so many images take with the model's usual recipe, told from a few steps; None: do not fit."""
        model = self.model
        recipe = Recipe(
            prompt="画",
            negative_prompt=model.negative_prompt,
            model=model.name,
            width=width or model.width,
            height=height or model.height,
            steps=TRIAL_STEPS,
            scheduler=model.scheduler,
            guidance=model.guidance,
            seeds=tuple(range(images)),
            mode="text2image",
            format="png",
        )
        began = time.monotonic()
        times = [began]

        def on_step(step: int, steps: int) -> None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.monotonic())

        try:
            self.paint([ImageRequest(recipe, seed) for seed in recipe.seeds], on_step)
        except OutOfMemory:
            return None
        return time.monotonic() - began + (times[-1] - times[-2]) * max(0, model.steps - len(times) + 1)


def clip_input(pixels: torch.Tensor, extractor: Any) -> torch.Tensor:
    """What the extractor would make of these pictures, on their device: the same to a level of the resized pixels."""
    height, width = pixels.shape[1:3]
    short, crop = extractor.size.shortest_edge, extractor.crop_size
    if not short or extractor.resample != BICUBIC or max(crop.height, crop.width) > short:
        seen: torch.Tensor = extractor(list(pixels.cpu().numpy()), return_tensors="pt").pixel_values
        return seen.to(pixels.device)
    times = short / min(height, width)
    sides = [short if side == min(height, width) else int(side * times) for side in (height, width)]
    images = pixels.permute(0, 3, 1, 2).float()
    for corner in ((height, sides[1]), (sides[0], sides[1])):  # across, then down, in whole levels: as Pillow does
        images = interpolate(images, corner, mode="bicubic", antialias=True).round().clamp(0, 255)
    top, left = (sides[0] - crop.height) // 2, (sides[1] - crop.width) // 2
    images = images[:, :, top : top + crop.height, left : left + crop.width] * extractor.rescale_factor
    mean, std = (images.new_tensor(three).view(3, 1, 1) for three in (extractor.image_mean, extractor.image_std))
    return (images - mean) / std
