"""Any ordinary file of prompts: each is accepted as what it is, or refused in one sentence."""

import io
import json
from typing import Any

import httpx
import pyarrow as pa
import pytest
from backports import zstd

from common.batches import lifecycle as batches
from common.broker import Broker
from common.config import Settings
from common.db import transaction
from common.prompt_files.formats import FORMATS
from common.storage import Storage
from tests.support.batch_stories import PLAN, BatchStory
from tests.support.prompt_tables import Rows, csv_text, gz, json_lines, objects, parquet, workbook, xlsx
from tests.support.stories import CATALOG, Story
from worker.control import batch_expander
from worker.control.batch_expander import Expander

LOOK = {"model": "mini-zh", "steps": 2}
TEXT = "红色的圆形\n夜空中的月亮\n一个蓝色的正方形\n"
PROMPTS = TEXT.split()
LINES = "".join(f'{{"prompt": "{prompt}", "seed": 7}}\n' for prompt in PROMPTS)
SHEET = "prompt,seed\n" + "".join(f"{prompt},7\n" for prompt in PROMPTS)
ARRAY = json.dumps([{"prompt": prompt} for prompt in PROMPTS], ensure_ascii=False, indent=1)
TABLE: Rows = [["prompt", "seed"], *([prompt, 7] for prompt in PROMPTS)]
VIEW: Rows = [["prompt", "guidance"], *([prompt, 5] for prompt in PROMPTS)]


def upload(client: httpx.Client, data: bytes, name: str, **params: str) -> httpx.Response:
    media_type = FORMATS[name].media_types[0] if name in FORMATS else name
    return client.post("/v1/uploads", content=data, params=params, headers={"Content-Type": media_type})


def outcome(client: httpx.Client, data: bytes, name: str, **params: str) -> Any:
    """What a dry run shows of a file, or the sentence that refuses it."""
    answer = upload(client, data, name, **params)
    if answer.status_code == 201:
        body = {"upload": answer.json()["id"], "defaults": LOOK, "seed": 100}
        answer = client.post("/v1/batches", params={"dry_run": "true"}, json=body)
    found = answer.json()
    if answer.status_code != 200:
        return found["detail"]
    if found["bad"]:
        return [(one["line"], one["reason"]) for one in found["bad_lines"]]
    return found["format"], found["encoding"], [one["prompt"] for one in found["recipes"]]


# What a file is called, its bytes, and what it is read as.
ACCEPTED = {
    "text": ("txt", TEXT.encode(), "txt", "utf-8"),
    "text of Notepad": ("txt", TEXT.replace("\n", "\r\n").encode("utf-8-sig"), "txt", "utf-8"),
    "text of a Chinese Windows": ("txt", TEXT.encode("gb18030"), "txt", "gb18030"),
    "text in UTF-16": ("txt", TEXT.encode("utf-16"), "txt", "utf-16"),
    "text in UTF-16 the other way round": ("txt", b"\xfe\xff" + TEXT.encode("utf-16-be"), "txt", "utf-16"),
    "text with CR": ("txt", TEXT.replace("\n", "\r").encode(), "txt", "utf-8"),
    "JSON Lines": ("jsonl", LINES.encode(), "jsonl", "utf-8"),
    "JSON Lines with a BOM": ("jsonl", LINES.encode("utf-8-sig"), "jsonl", "utf-8"),
    "JSON Lines in GBK": ("jsonl", LINES.encode("gbk"), "jsonl", "gb18030"),
    "JSON Lines in UTF-16": ("jsonl", LINES.encode("utf-16"), "jsonl", "utf-16"),
    "JSON Lines without a BOM in UTF-16": ("jsonl", LINES.encode("utf-16-le"), "jsonl", "utf-16"),
    "an array": ("json", json.dumps(objects(TABLE)).encode(), "json", "utf-8"),
    "a pretty array": ("json", ARRAY.encode(), "json", "utf-8"),
    "an array in GBK": ("json", ARRAY.encode("gbk"), "json", "gb18030"),
    "an array in UTF-16": ("json", ARRAY.encode("utf-16"), "json", "utf-16"),
    "an array called .jsonl": ("jsonl", ARRAY.encode(), "json", "utf-8"),
    "JSON Lines called .json": ("json", LINES.encode(), "jsonl", "utf-8"),
    "JSON Lines called .txt": ("txt", LINES.encode(), "jsonl", "utf-8"),
    "pretty objects": ("jsonl", ARRAY[1:-1].replace("},", "}").encode(), "json", "utf-8"),
    "a sheet": ("csv", SHEET.encode(), "csv", "utf-8"),
    "a sheet of Excel": ("csv", SHEET.replace("\n", "\r\n").encode("utf-8-sig"), "csv", "utf-8"),
    "a sheet of Excel with sep=": ("csv", ("sep=;\r\n" + SHEET.replace(",", ";")).encode(), "csv", "utf-8"),
    "a sheet with tabs": ("csv", SHEET.replace(",", "\t").encode(), "csv", "utf-8"),
    "a sheet in UTF-16": ("csv", SHEET.replace(",", "\t").encode("utf-16"), "csv", "utf-16"),
    "a sheet in UTF-16 without a BOM": ("csv", SHEET.encode("utf-16-le"), "csv", "utf-16"),
    "a sheet in UTF-16, ASCII but for the prompts": ("csv", SHEET.encode("utf-16-be"), "csv", "utf-16"),
    "a sheet with CR": ("csv", SHEET.replace("\n", "\r").encode(), "csv", "utf-8"),
    "a sheet of an unknown type": ("application/octet-stream", SHEET.encode(), "csv", "utf-8"),
    "TSV": ("tsv", SHEET.replace(",", "\t").encode(), "tsv", "utf-8"),
    "TSV in GBK": ("tsv", SHEET.replace(",", "\t").encode("gbk"), "tsv", "gb18030"),
    "JSON Lines, gzip": ("jsonl", gz(LINES.encode()), "jsonl", "utf-8"),
    "a sheet in GBK, gzip": ("csv", gz(SHEET.encode("gbk")), "csv", "gb18030"),
    "a sheet, zstd": ("csv", zstd.compress(SHEET.encode()), "csv", "utf-8"),
    "an array, zstd, of an unknown type": ("application/zstd", zstd.compress(ARRAY.encode()), "json", "utf-8"),
    "Parquet": ("parquet", parquet(TABLE), "parquet", None),
    "Parquet, gzip": ("parquet", gz(parquet(TABLE)), "parquet", None),
    "Parquet called .csv": ("csv", parquet(TABLE), "parquet", None),
    "Parquet with string_view": ("parquet", parquet(VIEW, {"prompt": pa.string_view()}), "parquet", None),
    "Parquet with decimals": ("parquet", parquet(VIEW, {"guidance": pa.decimal128(18, 2)}), "parquet", None),
    "Parquet with large text": ("parquet", parquet(TABLE, {"prompt": pa.large_string()}), "parquet", None),
    "Parquet with unsigned seeds": ("parquet", parquet(TABLE, {"seed": pa.uint64()}), "parquet", None),
    "Parquet with seeds of text": (
        "parquet",
        parquet([["prompt", "seed"], *([p, "7"] for p in PROMPTS)]),
        "parquet",
        None,
    ),
    "Parquet with fixed lists": (
        "parquet",
        parquet([["prompt", "seeds"], *([p, [7]] for p in PROMPTS)], {"seeds": pa.list_(pa.uint64(), 1)}),
        "parquet",
        None,
    ),
    "XLSX": ("xlsx", xlsx(TABLE), "xlsx", None),
    "XLSX called .csv": ("csv", xlsx(TABLE), "xlsx", None),
}


def test_each_ordinary_file_is_accepted_and_told_by_its_bytes(client: httpx.Client) -> None:
    found = {name: outcome(client, data, called) for name, (called, data, *_) in ACCEPTED.items()}
    assert found == {name: (format, encoding, PROMPTS) for name, (*_, format, encoding) in ACCEPTED.items()}


REFUSED = {
    "nothing": ("txt", b"", "The file is empty."),
    "a header alone": ("csv", b"prompt,seed\n", "The file has no prompts."),
    "no rows": ("parquet", parquet([["prompt"]], {"prompt": pa.string()}), "The file has no prompts."),
    "nothing in the rows": (
        "parquet",
        parquet([["prompt"], *([None],) * 9], {"prompt": pa.string()}),
        "The file has no",
    ),
    "an empty array": ("json", b"[ ]", "The file has no prompts."),
    "an empty workbook": ("xlsx", xlsx([]), "The file has no prompts."),
    "a truncated array": ("json", ARRAY.encode()[:-9], "Object 3 of the file is not JSON;"),
    "an array and more": ("json", ARRAY.encode() + b"x", "Object 4 of the file is not JSON;"),
    "a nested array": ("json", b"[" * 100_000, "Object 1 of the file is not JSON;"),
    "text in an array": ("json", b'["a"]', [(1, 'it is not a JSON object; write one such as {"prompt": "…"}.')]),
    "a truncated .gz": ("jsonl", gz(LINES.encode())[:-9], "The .gz file is damaged or truncated ("),
    "a damaged .gz": ("jsonl", gz(LINES.encode())[:-6] + b"xxxxxx", "The .gz file is damaged or truncated ("),
    "a truncated .zst": ("jsonl", zstd.compress(LINES.encode())[:-5], "The .zst file is damaged or truncated ("),
    "an old workbook": ("xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99, "The file is an old workbook (.xls)"),
    "a zip file": ("csv", b"PK\x03\x04" + bytes(99), "The file cannot be read as XLSX ("),
    "text called .xlsx": ("xlsx", TEXT.encode(), "The file is not an .xlsx workbook."),
    "thousands": ("csv", 'prompt,seed\n红,"1,234"\n'.encode(), [(2, "seed must be a whole number.")]),
    "NUL": ("csv", "prompt,seed\n红\0色,7\n".encode(), [(2, "prompt contains a NUL character.")]),
    "a long header": ("csv", b"x" * 200_000, "Line 1 must name the columns: it is longer than 100,000 bytes"),
    "separators": ("txt", "红\u2028蓝\n绿\n红\x85蓝\n".encode(), [1, 3]),
}


def test_each_other_file_is_refused_in_one_sentence(client: httpx.Client) -> None:
    for name, (called, data, says) in REFUSED.items():
        found = outcome(client, data, called)
        if name == "separators":
            found = [number for number, _ in found]
        assert found[: len(says)] == says if isinstance(says, str) else found == says, name


def test_the_client_may_say_the_format_for_certain(client: httpx.Client) -> None:
    odd = '{"prompt": "红色的圆形"}\n'
    assert outcome(client, odd.encode(), "txt")[0] == "jsonl"
    assert outcome(client, odd.encode(), "txt", format="txt") == ("txt", "utf-8", [odd.strip()])
    assert upload(client, odd.encode(), "text/html").status_code == 415
    assert outcome(client, odd.encode(), "text/html", format="jsonl")[0] == "jsonl"


def test_a_dry_run_counts_doubles(client: httpx.Client) -> None:
    """The same prompt with another seed is one prompt; a wrong line is none."""
    file = upload(client, b"prompt,seed\na,1\na,2\nb,\na,x\nc,x\n", "csv").json()["id"]
    body = {"upload": file, "defaults": LOOK, "matrix": {"guidance": [2, 3]}}
    found = client.post("/v1/batches", params={"dry_run": "true"}, json=body).json()
    assert (found["prompts"], found["bad"], found["jobs"], found["distinct"]) == (5, 2, 6, 2)


# The same rows in every format

ROWS: Rows = [
    ["prompt", "negative_prompt", "steps", "seed", "guidance", "width"],
    ["红色的圆形", "水印", 4, 7, 7.5, 64],
    ["他说“好”, 就这样", None, None, None, 5, None],
    [1984, "a\nb", 3.0, "18446744073709551615", "5", "64"],
    ["  蓝色的星形 ", None, "4", None, None, 128],
]
SAME = {
    "csv": csv_text(ROWS).encode(),
    "tsv": csv_text(ROWS, "\t").encode(),
    "jsonl": json_lines(ROWS).encode(),
    "json": json.dumps(objects(ROWS), indent=2).encode(),
    "xlsx": xlsx(ROWS),
    "parquet": parquet([[None if c is None else str(c) for c in row] for row in ROWS]),
}


def test_the_same_rows_are_the_same_recipes_in_every_format(client: httpx.Client) -> None:
    found = {}
    for name, data in SAME.items():
        body = {"upload": upload(client, data, name).json()["id"], "defaults": LOOK, "seed": 100}
        answer = client.post("/v1/batches", params={"dry_run": "true"}, json=body)
        found[name] = answer.json()["recipes"]
        assert answer.json()["bad_lines"] == []
    assert len(found["csv"]) == 4
    assert all(recipes == found["csv"] for recipes in found.values())
    assert found["csv"][2]["seeds"] == [2**64 - 1]
    assert found["csv"][2]["prompt"] == "1984"


def test_a_wrong_row_has_its_number_in_every_format(client: httpx.Client) -> None:
    rows: Rows = [["prompt", "steps"], ["红", 4], [None, None], ["绿", 999]]
    for name, data, number in (
        ("csv", csv_text(rows).encode(), 4),
        ("tsv", csv_text(rows, "\t").encode(), 4),
        ("xlsx", xlsx(rows), 4),
        ("xlsx", xlsx([[None], *rows]), 5),
        ("parquet", parquet(rows), 3),
        ("jsonl", b'{"prompt": "x"}\n\n' + json_lines([rows[0], rows[3]]).encode(), 3),
        ("json", json.dumps(objects([rows[0], rows[1], rows[3]])).encode(), 2),
    ):
        assert [line for line, _ in outcome(client, data, name)] == [number], name


# Work in the middle of a file when the release changes


def test_a_batch_of_a_file_that_older_code_stored_goes_on_where_that_code_left_it(
    story: Story, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts rows, as the code before, which may go on with it in turn."""
    monkeypatch.setattr(batch_expander, "CHUNK_IMAGES", 20)
    farm = BatchStory(story, settings)
    rows = [["prompt"], *([f"红色的圆形 {n}"] for n in range(50))]
    file = farm.upload(parquet(rows, row_group_size=20), "parquet")
    with transaction(farm.database) as connection:
        batch_id = batches.submit(connection, farm.tenant(), file, PLAN)
    assert farm.batch(batch_id).needs_code == 1
    seen = []
    while farm.expander.work(batch_id, 0):
        now = farm.batch(batch_id)
        seen.append((now.offset, now.line, now.jobs))
    assert (10, 10, 10) in seen
    assert all(offset == line for offset, line, _ in seen)
    assert [job.recipe["prompt"] for job in farm.jobs_of(batch_id)] == [prompt for (prompt,) in rows[1:]]


def test_a_batch_of_a_file_that_older_code_cannot_read_waits_for_newer_code(
    client: httpx.Client, story: Story, settings: Settings
) -> None:
    farm = Expander(story.database, Storage(settings), Broker(settings), CATALOG)
    for name, data, needs in (
        ("parquet", parquet(TABLE), 9),
        ("txt", TEXT.encode("gbk"), 9),
        ("csv", SHEET.encode("utf-16"), 9),
        ("csv", SHEET.encode("gbk"), 1),
        ("jsonl", LINES.encode(), 1),
    ):
        file = upload(client, data, name).json()["id"]
        batch = client.post("/v1/batches", json={"upload": file, "defaults": LOOK}).json()["id"]
        assert story.rows("SELECT needs_code FROM batches WHERE id = :id", id=batch)[0].needs_code == needs
        assert not farm.work(batch, 60)
        assert client.get(f"/v1/batches/{batch}").json()["jobs"] == 3


def test_values_of_any_type_are_carried_as_json(client: httpx.Client, settings: Settings) -> None:
    types = {
        "a": pa.binary(),
        "b": pa.decimal128(9, 2),
        "c": pa.timestamp("us"),
        "d": pa.struct({"x": pa.list_(pa.int8(), 2)}),
        "e": pa.map_(pa.string(), pa.int8()),
    }
    row = [b"\xff", 1, 0, {"x": [1, 2]}, [("k", 1)]]
    file = upload(client, parquet([["prompt", *types], ["红", *row]], types), "parquet").json()
    stored = Storage(settings).get(f"uploads/{file['id']}.table").decode().splitlines()
    assert json.loads(stored[0]) == ["prompt", *types]
    assert json.loads(stored[1]) == ["红", "/w==", 1, "1970-01-01T00:00:00", {"x": [1, 2]}, [["k", 1]]]


def test_a_workbook_with_cells_far_apart_ends_its_own_process_only(client: httpx.Client) -> None:
    cell = '<c r="{}"><v>1</v></c>'
    rows = f'<row r="1">{cell.format("A1")}</row><row r="1048576">{cell.format("XFD1048576")}</row>'
    found = outcome(client, workbook(rows.encode()), "xlsx")
    assert "bytes of memory" in found
    assert outcome(client, io.BytesIO(xlsx(TABLE)).read(), "xlsx")[2] == PROMPTS
