"""Input images through the farm: uploaded or rendered before, changed as a whole or inside a mask."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sqlalchemy import Engine, text

from common.broker import Broker
from common.config import Settings
from common.errors import SourceGone, Unavailable
from common.recipes.img2img import InputImage
from common.recipes.recipe import Recipe
from common.storage import Storage, upload_key
from tests.support.serving import Api, serving
from tests.support.stories import CATALOG, Story
from tests.support.workers import MakeWorker, bucket_of, until_published
from worker.availability import Availability
from worker.control.batch_expander import Expander
from worker.pipelines import base, registry
from worker.pipelines.base import ImageRequest, RenderedImage
from worker.render.input_images import InputImageLoader
from worker.render.worker import RenderWorker
from worker.watchdog import Watchdog

SIDE = 128
LEFT = (slice(None), slice(0, 64))
RIGHT = (slice(None), slice(64, SIDE))


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def grain(seed: int = 1, height: int = SIDE, width: int = SIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def right_half(side: int = SIDE) -> NDArray[np.uint8]:
    mask = np.zeros((side, side), np.uint8)
    mask[:, side // 2 :] = 255
    return mask


def upload(client: httpx.Client, pixels: Any) -> str:
    answer = client.post("/v1/uploads", content=png(pixels), headers={"Content-Type": "image/png"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def submitted(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json={"prompt": "蓝色的圆形", "steps": 10, "seed": 1, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return client.get(f"/v1/jobs/{job_id}").json()


def render(worker: RenderWorker) -> None:
    worker.loop.run()
    until_published(worker)


def pixels_of(client: httpx.Client, image: dict[str, Any]) -> NDArray[np.uint8]:
    content = client.get(f"/v1/images/{image['id']}/content", follow_redirects=True)
    return np.asarray(Image.open(io.BytesIO(content.content)))


def refusal(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [f"{error['field']} {error['message']}" for error in answer.json()["errors"]]


def test_a_picture_is_changed_and_the_job_says_from_which(client: httpx.Client, make_worker: MakeWorker) -> None:
    source = upload(client, grain())
    made = submitted(client, source=source, strength=0.35, count=2)
    render(make_worker())
    done = job(client, made["id"])
    assert done["state"] == "succeeded"
    recipe = done["recipe"]
    assert (recipe["mode"], recipe["source"], recipe["mask"], recipe["strength"]) == ("image2image", source, None, 0.35)
    first, second = (pixels_of(client, image) for image in done["images"])
    distance = np.abs(first - grain().astype(int)).mean()
    assert 0 < distance < 60  # of grain to grain: 85
    assert not np.array_equal(first, second)


def test_what_the_mask_keeps_is_the_source_to_the_bit(client: httpx.Client, make_worker: MakeWorker) -> None:
    """Also where the mask is smaller, and the source is a picture of the farm's own."""
    parent = submitted(client)
    worker = make_worker()
    render(worker)
    image = job(client, parent["id"])["images"][0]
    before = pixels_of(client, image)
    made = submitted(client, source=image["id"], mask=upload(client, right_half(32)), seed=2)
    render(worker)
    done = job(client, made["id"])
    assert (done["recipe"]["mode"], done["recipe"]["strength"]) == ("inpaint", 1.0)
    after = pixels_of(client, done["images"][0])
    assert np.array_equal(after[LEFT], before[LEFT])
    assert not np.array_equal(after[RIGHT], before[RIGHT])


def test_jobs_over_different_pictures_share_a_microbatch(
    client: httpx.Client, make_worker: MakeWorker, story: Story
) -> None:
    """As long as they take as many steps, whatever their strength."""
    for seed, strength in ((1, 0.5), (2, 0.55)):
        submitted(client, source=upload(client, grain(seed)), strength=strength)
    submitted(client, source=upload(client, grain(3)), strength=0.6)
    submitted(client)
    render(make_worker())
    assert sorted(len(row.image_ids) for row in story.rows("SELECT image_ids FROM leases")) == [1, 1, 2]


def test_a_source_is_scaled_until_it_covers_the_picture(client: httpx.Client, make_worker: MakeWorker) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:128] = 255  # all that is left of it as a square
    made = submitted(client, source=upload(client, wide), strength=0.1)
    render(make_worker())
    assert pixels_of(client, job(client, made["id"])["images"][0]).mean() > 200


def test_equal_pictures_under_other_names_are_drawn_to_equal_bytes(
    client: httpx.Client, make_worker: MakeWorker, story: Story
) -> None:
    made = [submitted(client, source=upload(client, grain())) for _ in range(2)]
    made.append(submitted(client, source=upload(client, grain(2))))
    render(make_worker())
    recipes = [Recipe.model_validate(story.job(one["id"]).recipe) for one in made]
    assert recipes[0] != recipes[1]
    assert recipes[0].digest == recipes[1].digest != recipes[2].digest
    first, second, other = (job(client, one["id"])["images"][0]["sha256"] for one in made)
    assert first == second != other


def test_a_retry_starts_from_the_same_picture(client: httpx.Client, story: Story, make_worker: MakeWorker) -> None:
    made = submitted(client, source=upload(client, grain()), mask=upload(client, right_half()), strength=0.5)
    client.post(f"/v1/jobs/{made['id']}/cancel")
    again = client.post(f"/v1/jobs/{made['id']}/retry").json()
    assert again["recipe"] == made["recipe"]
    render(make_worker())
    assert job(client, again["id"])["state"] == "succeeded"


def test_a_source_that_vanished_fails_its_image_and_no_other(
    client: httpx.Client, settings: Settings, story: Story, make_worker: MakeWorker
) -> None:
    gone, changed, there = (upload(client, grain(seed)) for seed in range(3))
    made = [submitted(client, source=source) for source in (gone, there, changed)]
    Storage(settings).delete([upload_key(UUID(gone), "png")])
    Storage(settings).put(upload_key(UUID(changed), "png"), png(grain(7)), "image/png")
    render(make_worker())
    ended = [job(client, one["id"]) for one in made]
    assert [one["state"] for one in ended] == ["failed", "succeeded", "failed"]
    assert {(one["error"]["code"], one["error"]["retryable"]) for one in (ended[0], ended[2])} == {
        ("source_gone", False)
    }
    assert f"The source {gone} is no longer in storage." == ended[0]["error"]["message"]
    assert [row.attempts for one in made for row in story.images(one["id"])] == [1, 1, 1]


def test_what_is_flagged_is_not_stored_and_nothing_starts_from_it(
    client: httpx.Client, settings: Settings, make_worker: MakeWorker
) -> None:
    source, mask = upload(client, grain()), upload(client, right_half())
    made = [
        submitted(client, prompt="圆形 #flagged"),
        submitted(client, prompt="圆形 #flagged", source=source),
        submitted(client, prompt="圆形 #flagged", source=source, mask=mask),
    ]
    render(make_worker())
    images = [job(client, one["id"])["images"][0] for one in made]
    assert [image["state"] for image in images] == ["flagged"] * 3
    assert len(bucket_of(settings)) == 2  # the uploads
    answer = client.post("/v1/jobs", json={"prompt": "圆形", "source": images[0]["id"]})
    assert refusal(answer) == [f"source is {images[0]['id']}; you have no upload and no stored image with this id"]


@pytest.fixture
def pictures(client: httpx.Client) -> dict[str, str]:
    prompts = client.post("/v1/uploads", content="圆形\n", headers={"Content-Type": "text/plain"}).json()["id"]
    return {"S": upload(client, grain()), "M": upload(client, grain(1, 64, SIDE)), "prompts": prompts}


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such picture": ({"source": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"}, ["source"]),
    "a file of prompts": ({"source": "prompts"}, ["source"]),
    "no picture to change": ({"mode": "image2image"}, ["source"]),
    "nothing to inpaint": ({"mode": "inpaint"}, ["source", "mask"]),
    "a mask alone": ({"mask": "S"}, ["source"]),
    "a mask of another shape": ({"source": "S", "mask": "M"}, ["mask"]),
    "a mask for image2image": ({"mode": "image2image", "source": "S", "mask": "S"}, ["mask"]),
    "a source for text2image": ({"mode": "text2image", "source": "S"}, ["source"]),
    "strength without a source": ({"strength": 0.5}, ["strength"]),
    "no strength": ({"source": "S", "strength": 0}, ["strength"]),
    "too much strength": ({"source": "S", "strength": 1.01}, ["strength"]),
    "so little strength that no step is left": ({"source": "S", "strength": 0.09, "steps": 10}, ["strength"]),
    "all of it at once": ({"source": "S", "strength": 2, "mask": "prompts", "width": 3}, ["width", "mask", "strength"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_together_is_named(client: httpx.Client, pictures: dict[str, str], name: str) -> None:
    fields, wrong = WRONG[name]
    fields = {key: pictures.get(str(value), value) for key, value in fields.items()}
    answer = client.post("/v1/jobs", json={"prompt": "圆形", **fields})
    assert [said.partition(" ")[0] for said in refusal(answer)] == wrong
    answer = client.post("/v1/batches", json={"prompts": ["圆形"], "defaults": fields})
    assert [said.partition(" ")[0] for said in refusal(answer)] == [f"defaults.{field}" for field in wrong]


@pytest.mark.parametrize("hours", [0, 2])
def test_a_picture_of_another_tenant_is_none(api: Api, client: httpx.Client, story: Story, hours: int) -> None:
    """However long ago its own tenant used it; and it is not kept longer for the other one."""
    source = upload(client, grain())
    with story.database.begin() as connection:
        ago = text("UPDATE uploads SET used_at = now() - make_interval(hours => :hours)")
        connection.execute(ago, {"hours": hours})
    before = story.rows("SELECT used_at FROM uploads")
    with api.client("another") as stranger:
        answer = stranger.post("/v1/jobs", json={"prompt": "圆形", "source": source})
        assert refusal(answer) == [f"source is {source}; you have no upload and no stored image with this id"]
    assert story.rows("SELECT used_at FROM uploads") == before


def test_a_rendered_image_of_another_tenant_is_none(api: Api, client: httpx.Client, story: Story) -> None:
    made = submitted(client)
    story.publish(story.started())
    image = job(client, made["id"])["images"][0]["id"]
    with api.client("another") as stranger:
        answer = stranger.post("/v1/jobs", json={"prompt": "圆形", "source": image})
        assert refusal(answer) == [f"source is {image}; you have no upload and no stored image with this id"]
    assert submitted(client, source=image)["recipe"]["source"] == image


def test_prompts_of_a_batch_start_from_its_picture_or_their_own(
    client: httpx.Client, settings: Settings, story: Story, make_worker: MakeWorker
) -> None:
    ours, own = upload(client, grain()), upload(client, grain(2))
    lines = f'{{"prompt": "圆形"}}\n{{"prompt": "圆形", "source": "{own}", "strength": 0.2}}\n'
    file = client.post("/v1/uploads", content=lines, headers={"Content-Type": "application/jsonl"}).json()["id"]
    draft = {"upload": file, "defaults": {"source": ours, "strength": 0.5, "steps": 10}}
    batch = client.post("/v1/batches", json=draft).json()["id"]
    expander = Expander(story.database, Storage(settings), Broker(settings), CATALOG)
    assert not expander.work(batch, 60)
    recipes = [one["recipe"] for one in client.get("/v1/jobs", params={"batch": batch}).json()["items"]]
    assert [(recipe["source"], recipe["strength"]) for recipe in recipes] == [(own, 0.2), (ours, 0.5)]
    render(make_worker())
    assert {one["state"] for one in client.get("/v1/jobs", params={"batch": batch}).json()["items"]} == {"succeeded"}


def test_a_batch_whose_prompts_name_no_picture_is_refused_with_the_line(
    client: httpx.Client, settings: Settings, story: Story
) -> None:
    lines = '{"prompt": "圆形"}\n{"prompt": "圆形", "source": "019c2f6e-7d40-7c3d-9a1f-0d5b6c7e8f90"}\n'
    file = client.post("/v1/uploads", content=lines, headers={"Content-Type": "application/jsonl"}).json()["id"]
    batch = client.post("/v1/batches", json={"upload": file}).json()["id"]
    Expander(story.database, Storage(settings), Broker(settings), CATALOG).work(batch, 60)
    assert "Line 2: source is 019c2f6e" in client.get(f"/v1/batches/{batch}").json()["error"]["message"]


def test_an_upload_that_is_asked_for_is_kept_longer(client: httpx.Client, story: Story) -> None:
    source = upload(client, grain())
    with story.database.begin() as connection:
        connection.execute(text("UPDATE uploads SET used_at = now() - interval '29 days'"))
    submitted(client, source=source)
    (row,) = story.rows("SELECT used_at > now() - interval '1 minute' AS is_fresh FROM uploads")
    assert row.is_fresh


# LoRAs: what painters make of them is in `tests/conformance/test_lora.py`

LORA = """
[loras.ink]
source = "./ink.safetensors"
sha256 = "%s"
%s
licence = "none"
licence_url = "https://example.org/licence"
description = "As if painted with ink."
"""


def test_loras_are_listed_and_taken_by_the_models_that_they_are_for(
    settings: Settings, database: Engine, tmp_path: Path
) -> None:
    shipped = settings.catalog.read_text("utf-8").replace("./mini-zh", str(settings.catalog.parent / "mini-zh"))
    oil = LORA.replace("ink", "oil") % ("0" * 64, 'models = ["zh-v0"]')
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(shipped + LORA % ("0" * 64, 'family = "stable-diffusion-zh"') + oil, "utf-8")
    with serving(settings.model_copy(update={"catalog": catalog}), database) as api, api.client() as client:
        models = {model["name"]: model for model in client.get("/v1/models").json()["items"]}
        assert [lora["name"] for lora in models["mini-zh"]["loras"]] == ["ink"]
        assert [lora["name"] for lora in models["zh-v0"]["loras"]] == ["ink", "oil"]
        made = submitted(client, model="mini-zh", lora=[{"name": "ink", "weight": 0.5}])
        assert made["recipe"]["lora"] == [{"name": "ink", "weight": 0.5}]
        for lora in ([{"name": "oil"}], [{"name": "nix"}]):
            answer = client.post("/v1/jobs", json={"prompt": "圆形", "model": "mini-zh", "lora": lora})
            assert [said.partition(" ")[0] for said in refusal(answer)] == ["lora.0.name"]


# Fetching


def test_input_images_are_waited_for_while_the_store_is_away(story: Story, settings: Settings) -> None:
    """The lease is not started meanwhile, so nothing counts as an attempt."""
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    loader = InputImageLoader(
        Storage(away, attempts=1), Availability("storage_away", "storage_back"), Watchdog({"store": 9}, print)
    )
    microbatch = claimed(story, InputImage(id=UUID(int=1), sha256="0", key="uploads/1.png", width=8, height=8))
    asked: list[int] = []

    def give_up() -> bool:
        asked.append(1)
        return len(asked) > 2

    fetched = loader.fetch(microbatch, give_up=give_up)
    assert fetched.wait(60)
    assert not fetched.ready()
    with pytest.raises(Unavailable):
        fetched.check()
    loader.close()


def test_a_missing_input_image_is_no_outage(story: Story, settings: Settings) -> None:
    loader = InputImageLoader(
        Storage(settings), Availability("storage_away", "storage_back"), Watchdog({"store": 9}, print)
    )
    microbatch = claimed(story, InputImage(id=UUID(int=1), sha256="0", key="uploads/1.png", width=8, height=8))
    fetched = loader.fetch(microbatch, give_up=lambda: False)
    assert fetched.wait(60)
    assert fetched.ready()
    assert isinstance(fetched.request(microbatch.images[0]), SourceGone)
    loader.close()


def claimed(story: Story, source: InputImage) -> Any:
    story.submit()
    microbatch = story.claim()
    assert microbatch
    recipe = story.recipe().model_copy(update={"mode": "image2image", "source": source, "strength": 1.0})
    return replace(microbatch, images=tuple(replace(image, recipe=recipe) for image in microbatch.images))


# With mini-zh: what the prompt says, where the source is


@pytest.fixture(scope="module")
def mini() -> Iterator[base.Pipeline]:
    loaded = registry.load(CATALOG.get("mini-zh"), "cpu", threads=1)
    yield loaded
    loaded.close()


def circle(colour: Any, centre: tuple[int, int]) -> NDArray[np.uint8]:
    picture = Image.new("RGB", (SIDE, SIDE), (250, 250, 248))
    x, y = centre
    ImageDraw.Draw(picture).ellipse((x - 26, y - 26, x + 26, y + 26), fill=colour)
    return np.asarray(picture)


RED, BLUE = (222, 48, 48), (48, 100, 214)


def painted(mini: base.Pipeline, prompt: str, seeds: range, **stroke: Any) -> list[NDArray[np.uint8]]:
    strength = stroke.pop("strength")
    original = InputImage(id=UUID(int=1), sha256="0", key="0", width=SIDE, height=SIDE)
    fields = {"mode": "inpaint" if "mask" in stroke else "image2image", "source": original, "strength": strength}
    recipe = Story.recipe(None, prompt=prompt, steps=20).model_copy(update=fields)  # type: ignore[arg-type]
    found = mini.generate([ImageRequest(recipe, seed, **stroke) for seed in seeds], lambda step, steps: None)
    return [one.pixels for one in found if isinstance(one, RenderedImage)]


def is_near(patch: Any, colour: Any, than: Any) -> bool:
    mean = patch.mean((0, 1))
    return float(np.linalg.norm(mean - colour)) < float(np.linalg.norm(mean - than))


def test_image2image_changes_the_colour_and_keeps_the_place(mini: base.Pipeline) -> None:
    """Of four pictures at least three: the model is a toy."""
    found = painted(mini, "蓝色的圆形，白色背景", range(4), source=circle(RED, (40, 64)), strength=0.8)
    inside = [picture[54:74, 30:50] for picture in found]
    outside = [picture[:, 100:] for picture in found]
    assert sum(is_near(patch, BLUE, RED) for patch in inside) >= 3
    assert sum(patch.mean() > 200 for patch in outside) >= 3


def test_inpainting_draws_inside_the_mask_and_keeps_the_rest(mini: base.Pipeline) -> None:
    source = circle(RED, (64, 64))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30:98, 30:98] = True
    found = painted(mini, "蓝色的圆形，白色背景", range(4), source=source, mask=mask, strength=1.0)
    assert all(np.array_equal(picture[~mask], source[~mask]) for picture in found)
    assert sum(is_near(picture[54:74, 54:74], BLUE, RED) for picture in found) >= 3
