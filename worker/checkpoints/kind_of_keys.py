"""What a file is by the names and the shapes of its tensors, if it is no Stable Diffusion 1.x. Imports no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.sentences import Sentence
from worker.checkpoints import sentence

Shapes = Mapping[str, tuple[int, ...]]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST, CONTEXT = f"{UNET}input_blocks.0.0.weight", "attn2.to_k.weight"


@dataclass(frozen=True)
class Signs:
    """What a file of one kind has: keys of these names, keys that begin so, or keys with one of these parts."""

    kind: Sentence
    names: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def are_in(self, keys: Iterable[str]) -> bool:
        return any(
            key in self.names or key.startswith(self.starts) or any(part in key for part in self.parts) for key in keys
        )


# The first that any key shows counts: what changes a model before models, for its keys name what it changes.
KINDS = (
    Signs(sentence("kind_lora"), parts=("lora_up", "lora_down", "lora_A.", "lora_B.", "lora.up.", "lora.down.")),
    Signs(sentence("kind_lora"), parts=("hada_w1_", "lokr_w1", "oft_blocks", "oft_diag", "dora_scale")),
    Signs(sentence("kind_embedding"), names=("string_to_param", "emb_params", "clip_l"), starts=("<",)),
    Signs(sentence("kind_hypernetwork"), names=("activation_func", "layer_structure")),
    Signs(
        sentence("kind_controlnet"),
        starts=("control_model.", "controlnet_", "zero_convs."),
        parts=("input_hint_block",),
    ),
    Signs(sentence("kind_ip_adapter"), starts=("ip_adapter.", "image_proj."), parts=("to_k_ip",)),
    Signs(
        sentence("kind_t2i_adapter"), starts=("adapter.body.", "body.0.in_conv.", "body.0.resnets.", "body.0.block1.")
    ),
    Signs(
        sentence("kind_video"),
        starts=("patch_embedding.", f"{UNET}patch_embedding."),
        parts=("motion_modules", "time_stack", "temporal_transformer", "temporal_resnet", "individual_token_refiner"),
    ),
    Signs(sentence("kind_sd3"), parts=("joint_blocks.",)),
    Signs(sentence("kind_flux2"), parts=("double_stream_modulation_img",)),
    Signs(sentence("kind_flux"), starts=("single_transformer_blocks.",), parts=("double_blocks.",)),
    Signs(sentence("kind_z_image"), parts=("cap_embedder", "noise_refiner", "context_refiner")),
    Signs(sentence("kind_qwen_image"), parts=(".img_mlp.", ".txt_mlp.")),
    Signs(sentence("kind_sdxl"), starts=("conditioner.embedders.",)),
    Signs(sentence("kind_sd2"), starts=("cond_stage_model.model.transformer.resblocks.",)),
    Signs(
        sentence("kind_upscaler"),
        names=("params", "params_ema", "model.0.weight"),
        starts=("body.0.rdb1.", "RRDB_trunk."),
    ),
    Signs(
        sentence("kind_language_model"),
        starts=("lm_head.", "transformer.h.", "model.layers.0.self_attn.", "layers.0.self_attn."),
    ),
)
ALONE = (  # only if there is no UNet of the original names in the file; T5 before a VAE, which has an encoder too
    Signs(sentence("kind_text_encoder"), starts=("encoder.block.",)),
    Signs(sentence("kind_vae"), starts=tuple(f"{place}{half}coder." for place in ("", VAE) for half in ("en", "de"))),
    Signs(sentence("kind_unet"), starts=("down_blocks.0.", "conv_in.", "time_embedding.")),
    Signs(sentence("kind_text_encoder"), starts=("cond_stage_model.", "text_model.", "transformer.text_model.")),
    Signs(sentence("kind_text_encoder"), starts=("bert.embeddings.", "embeddings.word_embeddings.")),
)
CONTEXTS = {1024: sentence("kind_sd2"), 2048: sentence("kind_sdxl")}
CHANNELS = {8: sentence("kind_pix2pix"), 9: sentence("kind_inpainting")}


def kind_of_keys(shapes: Shapes) -> Sentence | None:
    """None for a Stable Diffusion 1.x, and for what nobody knows."""
    if found := next((signs.kind for signs in KINDS if signs.are_in(shapes)), None):
        return found
    if any(key.startswith(UNET) for key in shapes):
        return _kind_of_unet(shapes)
    return next((signs.kind for signs in ALONE if signs.are_in(shapes)), None)


def _kind_of_unet(shapes: Shapes) -> Sentence | None:
    context = next((shape[1] for key, shape in shapes.items() if key.endswith(CONTEXT) and len(shape) == 2), 0)
    channels = shapes[FIRST][1] if len(shapes.get(FIRST, ())) == 4 else 0
    if kind := CHANNELS.get(channels) or CONTEXTS.get(context):
        return kind
    return None if any(key.startswith(VAE) for key in shapes) else sentence("kind_unet")
