"""`huafang grid` without a farm: the tables of a batch, the page, the sheet, and what is refused."""

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from api.queries.batches import BATCH
from cli.errors import Failure
from cli.sheets import contact_sheet
from cli.sheets.comparison import Comparison, compare
from cli.sheets.grid_page import render_page
from tests.support.command_line import CommandLine, Response, fake_farm

COLOURS = ("#d01010", "#10a020", "#1040d0", "#e0b000")
HOSTILE = "<script>alert('画')</script>\"'><img src=x onerror=alert(1)> &amp;"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def jobs_of(folder: Path, prompts: Sequence[str], variants: int, size: int = 64) -> list[dict[str, Any]]:
    """Jobs in their order, each with a picture of one colour; the colours go round."""
    made = []
    for place in range(len(prompts) * variants):
        file = folder / f"{place}.png"
        Image.new("RGB", (size, size), COLOURS[place % 4]).save(file)
        image = {"index": 0, "state": "stored", "seed": 7 + place // variants, "path": str(file)}
        made.append({"recipe": {"prompt": prompts[place // variants]}, "images": [image]})
    return made


def compared(folder: Path, prompts: Sequence[str], matrix: dict[str, Any], variants: int) -> Comparison:
    return compare({**BATCH, "matrix": matrix}, jobs_of(folder, prompts, variants))


def test_one_axis_is_a_table_of_prompts(tmp_path: Path) -> None:
    matrix = {"zip": [{"model": ["zh-v0", "zh-v1"], "scheduler": ["lms", "pndm"]}]}
    (table,) = compared(tmp_path, ["红", "绿"], matrix, 2).tables
    assert table.columns == ("zh-v0, lms", "zh-v1, pndm")
    assert [(row.title, row.subtitle) for row in table.rows] == [("红", "seed 7"), ("绿", "seed 8")]
    assert [cell.label for cell in table.rows[1].cells] == ["绿, zh-v0, lms, seed 8", "绿, zh-v1, pndm, seed 8"]
    assert [cell.picture.name for cell in table.rows[1].cells] == ["2.png", "3.png"]


def test_two_axes_are_a_table_for_each_prompt(tmp_path: Path) -> None:
    tables = compared(tmp_path, ["红", "绿"], {"steps": [2, 3], "guidance": [1.5, None, 3.0]}, 6).tables
    assert [(table.title, table.subtitle) for table in tables] == [("红", "seed 7"), ("绿", "seed 8")]
    assert tables[0].columns == ("guidance 1.5", "usual guidance", "guidance 3")
    assert [row.title for row in tables[0].rows] == ["2 steps", "3 steps"]
    assert [cell.picture.name for cell in tables[1].rows[1].cells] == ["9.png", "10.png", "11.png"]


def test_three_axes_are_too_many(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="has 3 axes"):
        compared(tmp_path, ["红"], {"steps": [2, 3], "guidance": [1, 2], "model": ["a", "b"]}, 8)


def test_a_missing_picture_has_a_reason(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, ["红", "绿"], 2)[:3]  # the batch was cancelled before the last
    for job, state in zip(jobs, ("flagged", "failed", "cancelled"), strict=True):
        job["images"] = [{"index": 0, "state": state, "seed": 7, "error": {"message": f"It is {state}."}}]
    comparison = compare({**BATCH, "matrix": {"steps": [2, 3]}}, jobs)
    reasons = ["flagged: the safety checker refused it", "failed: It is failed.", "cancelled"]
    assert [cell.missing for cell in comparison.cells] == [*reasons, "not rendered"]
    page = Page(render_page(comparison, "a grid"))
    assert page.all("img") == []
    assert set(reasons) <= set(page.text)
    picture, _ = contact_sheet.render_sheet(comparison)
    assert picture.getbbox() is not None


def test_a_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    comparison = compared(tmp_path, ["红色的圆形", HOSTILE], {"steps": [2, 3]}, 2)
    html = render_page(comparison, HOSTILE)
    page = Page(html)
    assert page.text.count(HOSTILE) == 3  # twice as a title, once beside its pictures
    assert page.all("script") == []
    pictures = page.all("img")
    assert [set(each) for each in pictures] == [{"src", "alt", "width", "height"}] * 4
    assert all(each["src"].startswith("data:image/png;base64,") for each in pictures)
    assert pictures[2]["alt"] == f"{HOSTILE}, 2 steps, seed 8"
    links = {each["href"] for each in page.all("a")}
    assert links == {f"#{kind}{number}" for kind in "pc" for number in range(1, 5)}
    assert links == {f"#{each['id']}" for tag in ("figure", "td") for each in page.all(tag) if "id" in each}
    assert b"http://" not in html
    assert b"https://" not in html
    assert str(page.all("meta")[1]["content"]).startswith("default-src 'none'")


def test_large_pictures_are_embedded_as_webp(tmp_path: Path) -> None:
    comparison = compared(tmp_path, ["红"], {"steps": [2, 3]}, 2)
    Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / "0.png")
    first, second = Page(render_page(comparison, "a grid")).all("img")
    assert first["src"].startswith("data:image/webp;base64,")
    assert (first["width"], first["height"]) == ("400", "300")
    assert second["src"].startswith("data:image/png;base64,")
    assert len(first["src"]) < (tmp_path / "0.png").stat().st_size


def test_a_sheet_has_every_picture_in_its_cell(tmp_path: Path) -> None:
    picture, _ = contact_sheet.render_sheet(compared(tmp_path, ["红", "绿"], {"steps": [2, 3]}, 2))
    step, left = (
        contact_sheet.MIN_SIDE + contact_sheet.GAP,
        contact_sheet.MARGIN + contact_sheet.TITLE_WIDTH + contact_sheet.MIN_SIDE // 2,
    )
    assert picture.width == 2 * contact_sheet.MARGIN + contact_sheet.TITLE_WIDTH + step + contact_sheet.MIN_SIDE
    columns: Any = [[picture.getpixel((x, y)) for y in range(picture.height)] for x in (left, left + step)]
    seen = [["#" + bytes(pixel).hex() for pixel in column] for column in columns]
    for column, colours in zip(seen, (COLOURS[0::2], COLOURS[1::2]), strict=True):
        upper, lower = (column.index(colour) for colour in colours)
        assert lower - upper == step
        assert [column.count(colour) for colour in colours] == [64, 64]


def test_without_a_font_hanzi_become_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "find_hanzi_font", lambda size: None)
    _, legend = contact_sheet.render_sheet(
        compared(tmp_path, ["红色的圆形", "a red circle", "绿"], {"steps": [2, 3]}, 2)
    )
    assert legend == ["红色的圆形", "绿"]


@pytest.mark.needs("hanzi")
def test_with_a_font_hanzi_are_drawn(tmp_path: Path) -> None:
    picture, legend = contact_sheet.render_sheet(compared(tmp_path, ["红色的圆形"], {"steps": [2, 3]}, 2))
    beside = picture.crop((0, 0, contact_sheet.MARGIN + contact_sheet.TITLE_WIDTH, picture.height // 2))
    assert (legend, len(beside.getcolors(10_000)) > 10) == ([], True)


def test_titles_break_between_words_and_hanzi() -> None:
    assert contact_sheet.split_breakable("左边，右边 two words") == ["", "左", "边，", "右", "边", " ", "two ", "words"]
    assert max(map(len, contact_sheet.split_breakable("x" * 99))) < 20


BAD = {
    "no prompts": (("--models=a,b",), "--prompt TEXT"),
    "nothing to compare": (("--prompt=红", "--models=a"), "several values"),
    "three things": (("--prompt=红", "--models=a,b", "--steps=1,2", "--guidance=1,2"), "one or two"),
    "too many": (("--prompt=红", "--steps=" + ",".join(map(str, range(1, 402)))), "401 pictures"),
    "a list with a hole": (("--prompt=红", "--steps=1,,2"), "place without a value"),
    "a batch and more": (("--prompt=红", "--batch=x"), "only other option is --out"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_invalid_grid_is_not_sent(capsys: pytest.CaptureFixture[str], tmp_path: Path, case: str) -> None:
    given, expected = BAD[case]
    with fake_farm(lambda request: Response(500)) as farm:
        done = CommandLine(capsys)("--url", farm.url, "--key=k", "grid", "--out", str(tmp_path), *given)
    assert (done.code, expected in done.err, farm.requests) == (2, True, []), done.err


def test_a_batch_that_is_too_large_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with fake_farm(lambda request: Response(body=BATCH)) as farm:
        done = CommandLine(capsys)("--url", farm.url, "--key=k", "grid", "--batch=x", "--out", str(tmp_path))
    assert (done.code, "has 4000 pictures" in done.err) == (1, True)
