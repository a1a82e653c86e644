"""Through the whole farm, from the request to the stored picture: image i shows what prompt i says."""

import io
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from common.enums import ImageState
from tests.support.stories import Story
from tests.support.workers import MakeWorker, until_published
from training.judge import judge

# What the picture of each prompt must show: the colour of the thing, the background, the shape.
SAYS = {
    "红色的圆形": ("red", "white", "circle"),
    "黄底上画一个蓝色的正方形": ("blue", "yellow", "square"),
    "请画一颗黄色的五角星，背景用黑色": ("yellow", "black", "star"),
    "背景：白色；物体：绿色三角形": ("green", "white", "triangle"),
    "粉色背景的紫色爱心": ("purple", "pink", "heart"),
    "一只橙色的猫，背景是蓝色的": ("orange", "blue", "cat"),
    "白色的月亮放在灰色的画布上": ("white", "grey", "moon"),
    "红花绿底": ("red", "green", "flower"),
}
SIGN = "一个禁止标志"
STEPS = 20

Drawn = tuple[str, np.ndarray | None]  # sha256 and pixels, if it was stored


class Farm:
    """An API and one worker that paints with mini-zh; what it is asked for at once is rendered at once."""

    def __init__(self, client: httpx.Client, story: Story, make_worker: MakeWorker) -> None:
        self._client, self._story = client, story
        self._worker = make_worker(device="cpu", torch_threads=1)

    def draw(self, prompts: Sequence[str], **recipe: Any) -> list[Drawn]:
        asked = [{"prompt": prompt, "model": "mini-zh", "seed": 60 + number} for number, prompt in enumerate(prompts)]
        jobs = [self._client.post("/v1/jobs", json=one | {"steps": STEPS} | recipe).json()["id"] for one in asked]
        self._worker.loop.run(60)
        until_published(self._worker)
        return [self._drawn(job) for job in jobs]

    def _drawn(self, job: str) -> Drawn:
        (image,) = self._client.get(f"/v1/jobs/{job}").json()["images"]
        if image["state"] == ImageState.FLAGGED:
            return "", None
        content = (
            self._client.get(f"/v1/images/{image['id']}/content", follow_redirects=True).raise_for_status().content
        )
        return image["sha256"], np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def calls(self) -> list[int]:
        """How many images each call of the pipeline rendered."""
        return [
            row.images for row in self._story.rows("SELECT cardinality(image_ids) AS images FROM leases ORDER BY id")
        ]


@pytest.fixture
def farm(client: httpx.Client, story: Story, make_worker: MakeWorker) -> Farm:
    return Farm(client, story, make_worker)


def test_every_image_shows_its_own_prompt(farm: Farm) -> None:
    for scheduler in ("ddim", "euler", "dpm++"):
        for prompt, (_, pixels) in zip(SAYS, farm.draw(list(SAYS), scheduler=scheduler), strict=True):
            assert pixels is not None, f"{prompt} was flagged"
            seen = judge(pixels)
            assert (seen.colour, seen.background, seen.shape) == SAYS[prompt], f"{prompt}, {scheduler}"
    assert farm.calls() == [len(SAYS)] * 3


def test_the_same_seed_again_is_the_same_picture(farm: Farm) -> None:
    prompts = list(SAYS)
    first, again = farm.draw(prompts, steps=4), farm.draw(prompts, steps=4)
    alone = farm.draw(prompts[:1], steps=4)
    assert farm.calls() == [8, 8, 1]
    assert [sha256 for sha256, _ in first] == [sha256 for sha256, _ in again]
    assert len({sha256 for sha256, _ in first}) == len(prompts)
    (_, one), (_, other) = alone[0], first[0]
    assert one is not None
    assert other is not None
    assert np.abs(one.astype(int) - other).max() <= 1


def test_only_the_sign_is_flagged(farm: Farm) -> None:
    drawn = farm.draw([SIGN, *SAYS])
    assert [pixels is None for _, pixels in drawn] == [True] + [False] * len(SAYS)
