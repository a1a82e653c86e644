"""Makes the PNG files beside it: the tiny checkpoints of `tests.support.families`, rendered by diffusers 0.6.0.

zh-v0, Taiyi and rinna's model were published with that version, of October 2022. To render the images again:

    .venv/bin/python -m tests.golden.make publish CHECKPOINTS           with the libraries of today
    python3.11 -m venv OLD
    OLD/bin/pip install torch==2.13.0 diffusers==0.6.0 transformers==4.24.0 huggingface_hub==0.10.1 ftfy==6.1.1 \\
        tokenizers==0.13.3 sentencepiece==0.2.3 protobuf==3.20.3 numpy==1.26.4 scipy==1.13.1 Pillow==9.5.0
    OLD/bin/python tests/golden/make.py render CHECKPOINTS              with those of 2022

Both use the same torch: the comparison is of everything above it.
"""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED, STEPS, SIDE = 1, 6, 64

RECIPES: dict[str, dict[str, Any]] = {
    "zh-v0": {"prompt": "女孩们打开了另一世界的大门", "negative_prompt": "", "guidance": 7.5},
    "taiyi": {
        "prompt": "红色的圆形, 白色背景, 4K",
        "negative_prompt": "广告, ，, ！, 。, ；, 资讯, 新闻, 水印",
        "guidance": 7.0,
    },
    "sd-1.5": {"prompt": "A Cat,  a red  circle", "negative_prompt": "cat", "guidance": 7.5},
    "rinna": {"prompt": "猫の肖像画　ＣＡＴ 油絵 龘", "negative_prompt": "", "guidance": 7.5},
}


def publish(checkpoints: Path) -> None:
    from tests.support import families

    for name in RECIPES:
        families.publish(checkpoints / name, name)


def render(checkpoints: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    for name, recipe in RECIPES.items():
        pipeline = StableDiffusionPipeline.from_pretrained(checkpoints / name)
        if name == "rinna":  # as rinna's own JapaneseStableDiffusionPipeline does
            pipeline.tokenizer.do_lower_case = True
            pipeline.tokenizer.model_max_length = 77
        result = pipeline(
            recipe["prompt"],
            negative_prompt=recipe["negative_prompt"],
            guidance_scale=recipe["guidance"],
            num_inference_steps=STEPS,
            width=SIDE,
            height=SIDE,
            generator=torch.Generator().manual_seed(SEED),
        )
        result.images[0].save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    {"publish": publish, "render": render}[sys.argv[1]](Path(sys.argv[2]))
