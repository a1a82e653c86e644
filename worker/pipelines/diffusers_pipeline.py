"""A model in memory on diffusers: what is common to all families, from requests to checked pixels.

`worker.pipelines.assembly` builds diffusers' pipeline, `worker.pipelines.families` has what differs between families,
`worker.pipelines.device` knows the device. Knows nothing of jobs, leases or storage. Imports torch and diffusers.
"""

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from common.catalog.catalog import Model
from common.errors import LoraRefused, NanImage, OutOfMemory, PromptRefused, RenderFailed
from common.recipes.recipe import Recipe
from common.recipes.text_cache import TextCache
from worker.checkpoints import layout
from worker.checkpoints.layout import first_line
from worker.checkpoints.loader import precision
from worker.loras.adapters import LoraAdapters
from worker.pipelines import batch_size, safety_checker, sentence
from worker.pipelines.assembly import family_of, load_checker, load_pipeline
from worker.pipelines.base import DeviceLost, ImageRequest, OnStep, RenderedImage
from worker.pipelines.device import free_memory, is_lost, is_out_of_memory, memory_limit, resolve
from worker.pipelines.img2img import Img2Img
from worker.pipelines.placement import DECODE, DENOISE, ENCODE, Placement, largest_stage
from worker.pipelines.safety_checker import Checker, Verdict
from worker.pipelines.schedulers import Config, scheduler

BENCHMARK_STEPS = 2
MAX_CACHED_BYTES = 1_000_000  # of checked prompts


def load(model: Model, device: str = "auto", threads: int | None = None) -> "DiffusersPipeline":
    if threads:
        torch.set_num_threads(threads)
    resolved = torch.device(resolve(device))
    try:
        folder, checker = layout.find(model), load_checker(model, resolved)
        pipeline = DiffusersPipeline(model, resolved, *load_pipeline(model, folder, resolved), checker)
        if model.compile:
            pipeline.warm_up()
        return pipeline
    except RenderFailed:
        raise
    except Exception as error:  # damaged files make the libraries raise anything
        if is_out_of_memory(error):
            raise OutOfMemory(sentence("model_too_large", model=model.name, device=resolved)) from error
        if is_lost(error):
            raise DeviceLost(first_line(error)) from error
        raise layout.not_loadable(model, error) from error


def details(model: Model, device_kind: str) -> dict[str, Any]:
    """What of the catalogue's entry moves pixels on this kind of device."""
    whole = precision(model, device_kind)
    of_components = {name: precision(model, device_kind, name) for name in model.component_precision}
    others = {name: other for name, other in of_components.items() if other != whole}
    return {
        "precision": whole,
        **({"component_precision": others} if others else {}),
        **({"compiled": True} if model.compile else {}),
        **({"tile_above": model.tile_above} if model.tile_above is not None else {}),
    }


def modules(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components that have weights."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


class DiffusersPipeline:
    def __init__(
        self, model: Model, device: torch.device, pipe: Any, scheduler_config: Config, checker: Checker | None = None
    ) -> None:
        """`checker` judges the images; None: the one that the model brings, if it brings one."""
        self.model = model
        self.revision = model.revision
        self.details: Mapping[str, Any] = details(model, device.type)
        assert model.source_path
        self.components: Mapping[Hashable, int] = {
            layout.component_id(model, model.source_path, name): _bytes(component)
            for name, component in modules(pipe).items()
        }
        if checker and model.checker and model.checker.import_path:
            shared_id = layout.component_id(model.checker, model.checker.import_path, "safety_checker")
            self.components = {**self.components, shared_id: _bytes(checker.safety_checker)}
        parts = {**modules(pipe), **({"safety_checker": checker.safety_checker} if checker else {})}
        self._placement = Placement(model, parts, device)
        if self._placement.is_by_stage:
            self.components = largest_stage(model, {name: _bytes(part) for name, part in parts.items()})
        self._device = device
        self._family = family_of(model)
        self._pipe = pipe
        self._judged_by = checker or pipe
        self._scheduler_config = scheduler_config
        self._loras = LoraAdapters(model, pipe)
        self._short_enough = TextCache[bool](MAX_CACHED_BYTES, lambda _: 0)  # images of a job have the same prompts

    def generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        refusals = [self._check_prompts(request) for request in requests]
        accepted = [request for request, refusal in zip(requests, refusals, strict=True) if refusal is None]
        try:
            self._loras.activate(requests[0].recipe.lora)
            results = iter(self._generate(accepted, on_step) if accepted else ())
        except LoraRefused as error:
            return [error for _ in requests]
        except RuntimeError as error:
            if is_lost(error):
                raise DeviceLost(first_line(error)) from error
            if is_out_of_memory(error):
                raise OutOfMemory(sentence("lora_out_of_memory", model=self.model.name)) from error
            raise
        return [refusal or next(results) for refusal in refusals]

    def sharing_key(self, request: ImageRequest) -> Hashable:
        """Of some families, prompts of different length in one call change each other's images."""
        if self.model.facts.sharing != "equal_length":
            return None
        texts = (request.recipe.prompt, request.recipe.negative_prompt)
        return tuple(self._family.count_tokens(self.model, self._pipe, text) for text in texts)

    def find_batch_size(self, reserved: int) -> int:
        if self.model.facts.sharing == "single":
            return 1
        if self._device.type == "cpu" and self._is_slow():
            return 1
        self._benchmark(1)  # the first call takes longer than any other
        to_come = sum(self.components.values()) if self._placement.is_by_stage else 0  # of weights, in a call
        with memory_limit(self._device, reserved - to_come):
            return batch_size.find_batch_size(self._benchmark)

    def _is_slow(self) -> bool:
        """Whether one image alone keeps the device busy so long that a benchmark of several is not worth it."""
        side, start = self.model.min_side, time.monotonic()
        self._benchmark(1, side, side)
        ratio = self.model.width * self.model.height / side**2
        return ratio * (time.monotonic() - start) > batch_size.BENCHMARK_S

    def warm_up(self) -> None:
        """Compile the model for one image and for several."""
        for images in (1, 2):
            self._benchmark(images)

    def close(self) -> None:
        self._pipe = self._judged_by = None
        self._placement = Placement(self.model, {}, self._device)
        self._loras = LoraAdapters(self.model, None)  # the old one has a reference to the pipeline
        free_memory()

    def _check_prompts(self, request: ImageRequest) -> PromptRefused | None:
        """Refuse prompts that are too long: diffusers would truncate them and only log it."""
        limit = self._family.token_limit(self.model, self._pipe)
        for field in ("prompt", "negative_prompt"):
            if self._short_enough.get(text := getattr(request.recipe, field)):
                continue
            count = self._family.count_tokens(self.model, self._pipe, text)
            if count > limit:
                return PromptRefused(
                    sentence("prompt_too_long", field=field, count=count, model=self.model.name, limit=limit)
                )
            self._short_enough.put(text, True)
        return None

    def _generate(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        results = self._run(requests, on_step)
        failed = [index for index, result in enumerate(results) if isinstance(result, NanImage)]
        if failed and any(component.dtype != torch.float32 for component in modules(self._pipe).values()):
            retried = self._retry_in_fp32([requests[index] for index in failed], on_step)
            for index, result in zip(failed, retried, strict=False):
                results[index] = result
        return results

    def _retry_in_fp32(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        """One by one, for fp32 takes twice the memory; an empty list if even that is too much."""
        dtypes = {name: component.dtype for name, component in modules(self._pipe).items()}
        try:
            self._pipe.to(torch.float32)
            with self._eager():  # compiling again takes longer than a few images
                return [result for request in requests for result in self._run([request], on_step)]
        except (RuntimeError, OutOfMemory) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            return []
        finally:
            for name, component in modules(self._pipe).items():
                component.to(dtypes[name])  # restores every weight exactly: fp32 holds all numbers of fp16 and bf16

    def _run(self, requests: Sequence[ImageRequest], on_step: OnStep) -> list[RenderedImage | RenderFailed]:
        rendered = self._render(requests, on_step)
        if rendered is None:  # only now: the exception's traceback referred to the tensors
            free_memory()
            recipe = requests[0].recipe
            raise OutOfMemory(sentence("out_of_memory", images=len(requests), width=recipe.width, height=recipe.height))
        pixels, verdicts, nan = rendered
        return [
            NanImage(sentence("nan_image", model=self.model.name)) if is_nan else RenderedImage(image, *verdict)
            for image, verdict, is_nan in zip(pixels.cpu().numpy(), verdicts, nan, strict=True)
        ]

    def _render(
        self, requests: Sequence[ImageRequest], on_step: OnStep
    ) -> tuple[torch.Tensor, list[Verdict], list[bool]] | None:
        """The pixels, the verdict on each image, and whether it is NaN; None if memory ran out."""
        try:
            return self._decode(*self._denoise(requests, on_step), requests[0].recipe)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _denoise(self, requests: Sequence[ImageRequest], on_step: OnStep) -> tuple[torch.Tensor, Img2Img | None]:
        recipe = requests[0].recipe
        assert all(request.recipe.compatibility == recipe.compatibility for request in requests)

        self._pipe.scheduler = scheduler(recipe.scheduler, self._scheduler_config)
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        with self._placement.using(ENCODE):
            arguments = self._arguments([request.recipe for request in requests])
        with self._placement.using(DECODE, "vae") if recipe.source else nullcontext():
            img2img = Img2Img(self._pipe, self._family, requests, generators, arguments) if recipe.source else None
        arguments |= img2img.arguments if img2img else {}

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, pipe.num_timesteps)
            return {"latents": img2img.on_step_end(step, tensors["latents"])} if img2img else tensors

        eager = self._eager() if recipe.lora else nullcontext()  # a LoRA changes what was compiled
        with eager, self._placement.using(DENOISE):
            latents: torch.Tensor = self._pipe(
                **arguments,
                generator=generators,
                latents=img2img.latents if img2img else None,
                callback_on_step_end=on_step_end,
            ).images
        return latents, img2img

    @torch.no_grad()
    def _arguments(self, recipes: Sequence[Recipe]) -> dict[str, Any]:
        """What diffusers' call gets, beside what depends on seeds and input pictures."""
        recipe, guidance = recipes[0], self.model.facts.guidance
        is_guided = self.model.guided and recipe.guidance > guidance.off
        return {
            **self._family.encode(self._pipe, recipes, is_guided),
            guidance.argument: recipe.guidance if self.model.guided else guidance.off,
            "width": recipe.width,
            "height": recipe.height,
            "num_inference_steps": recipe.steps,
            "output_type": "latent",
        }

    @property
    def _denoiser(self) -> Any:
        return getattr(self._pipe, self.model.facts.denoiser)

    def _eager(self) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if self.model.compile else nullcontext()

    @contextmanager
    def _tiles(self, recipe: Recipe) -> Iterator[None]:
        """The VAE decodes tile by tile during the block, if the catalogue wants that for images so large."""
        limit, vae = self.model.tile_above, self._pipe.vae
        if limit is None or recipe.width * recipe.height <= limit:
            yield
            return
        vae.enable_tiling()
        try:
            yield
        finally:
            vae.disable_tiling()  # another model may share it

    @torch.no_grad()
    def _decode(
        self, latents: torch.Tensor, img2img: Img2Img | None, recipe: Recipe
    ) -> tuple[torch.Tensor, list[Verdict], list[bool]]:
        """Decode and check on the device."""
        with self._placement.using(DECODE):
            with self._tiles(recipe):
                images = self._family.to_pixels(self._pipe, latents, recipe.width, recipe.height).float()
            nan = images.isnan().flatten(1).any(1)
            levels = ((images * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            pixels = levels.permute(0, 2, 3, 1).contiguous()  # the layout of image files: encoding copies nothing
            pixels = img2img.composite(pixels) if img2img else pixels
            return pixels, safety_checker.judge(self._judged_by, pixels), nan.tolist()

    def _benchmark(self, images: int, width: int | None = None, height: int | None = None) -> float | None:
        """Seconds for so many images of the model's default recipe, extrapolated from a few steps; None: no memory."""
        model = self.model
        recipe = Recipe(
            prompt="画",
            negative_prompt=model.negative_prompt,
            model=model.name,
            width=width or model.width,
            height=height or model.height,
            steps=BENCHMARK_STEPS,
            scheduler=model.scheduler,
            guidance=model.guidance,
            seeds=tuple(range(images)),
            mode="text2image",
            format="png",
        )
        start = time.monotonic()
        times = [start]

        def on_step(step: int, steps: int) -> None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.monotonic())

        try:
            self.generate([ImageRequest(recipe, seed) for seed in recipe.seeds], on_step)
        except OutOfMemory:
            return None
        return time.monotonic() - start + (times[-1] - times[-2]) * max(0, model.steps - len(times) + 1)


def _bytes(component: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*component.parameters(), *component.buffers()))
