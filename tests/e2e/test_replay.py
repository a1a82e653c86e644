"""A dataset is drawn again from the shell: on the class that has drawn it, and on another one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.config import Settings
from tests.support.command_line import Result
from tests.support.workers import QUICK, running

Call = Callable[..., Result]

PROMPTS = ["红色的圆形", "蓝色的正方形", "绿色的三角形", "黄色的星形", "红色的心形", "黑色的月亮"]


def exported(call: Call, folder: Path, layout: str, each: int, *how: str) -> Path:
    """A dataset of six prompts with so many pictures each, which the workers that run now have drawn."""
    prompts = folder.with_suffix(".txt")
    prompts.write_text("\n".join(PROMPTS))
    look = (f"--images-per-prompt={each}", "--seed=7", "--model=mini-zh", "--size=128x128", "--steps=2")
    batch = call("batch", "submit", str(prompts), *look, "--watch")
    assert batch.code == 0, batch.err
    made = call("dataset", "export", batch.json["id"], f"--out={folder}", f"--layout={layout}", *how)
    assert made.code == 0, made.err
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "metadata/train-00000.parquet").to_pylist()


@pytest.mark.timeout(900)
def test_a_dataset_is_drawn_again_by_both_classes_of_workers(call: Call, settings: Settings, tmp_path: Path) -> None:
    def expect(made: Result, code: int, same_class: bool, **counts: int) -> None:
        assert made.code == code, made.err
        (row,) = made.json
        assert (row["same_class"], row["other_weights"]) == (same_class, 0)
        assert {name: row[name] for name in counts} == counts

    with running(tmp_path, settings, "control", **QUICK):
        with running(tmp_path, settings, "render", **QUICK):
            stubs = exported(call, tmp_path / "stubs", "imagefolder", each=2)
            expect(call("dataset", "replay", str(stubs)), 0, True, drawn=12, exact=12)
            few = call("dataset", "replay", str(stubs), "--sample=5")
            expect(few, 0, True, drawn=5, exact=5)
            small = exported(call, tmp_path / "small", "imagefolder", 1, "--resize=64")
            refused = call("dataset", "replay", str(small))
            assert (refused.code, "another format or size" in refused.err) == (2, True)
            assert call("dataset", "replay", str(stubs), "--key=nobody").code == 3, "no picture was refused"
            altered = next((stubs / "data/train-00000").glob("*.png"))
            with Image.open(altered) as picture:
                picture.load()
                texts = picture.info
            shifted = picture.point(lambda level: min(level + 1, 255))
            save(shifted, altered, texts)
            expect(call("dataset", "replay", str(stubs)), 0, True, drawn=12, exact=11, within_1=1)
            save(picture.point(lambda level: 255 - level), altered, texts)
            expect(call("dataset", "replay", str(stubs)), 1, True, drawn=12, exact=11, different=1)
            altered.write_bytes(b"no picture")
            assert call("dataset", "replay", str(stubs)).code == 1
        with running(tmp_path, settings, "render", DEVICE="cpu", MODELS="mini-zh"):
            real = exported(call, tmp_path / "real", "webdataset", each=1)
            expect(call("dataset", "replay", str(real)), 0, True, drawn=6, different=0)
            expect(call("dataset", "replay", str(stubs), "--sample=3"), 0, False, drawn=3, different=3)
    assert {row["model_revision"] for row in rows_of(real)} == {row["model_revision"] for row in rows_of(stubs)}
    assert rows_of(real)[0]["key"] == rows_of(stubs)[0]["key"], "whatever class has drawn it, and with what siblings"
    assert json.loads(rows_of(real)[0]["worker_class"])["device"] == "cpu"


def save(picture: Image.Image, file: Path, texts: dict[str, Any]) -> None:
    """With its texts, as a worker writes them."""
    from PIL.PngImagePlugin import PngInfo

    known = PngInfo()
    for name, text in texts.items():
        known.add_itxt(name, str(text))
    picture.save(file, "PNG", pnginfo=known)
