"""Files of prompts, line by line, from anywhere in them: JSON Lines, a prompt a line, CSV, Parquet."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import Invalid, Unavailable
from common.prompt_files import columns
from common.prompt_files import parquet as parquet_lines
from common.prompt_files.columns import columns_of, field_of, parse_cell
from common.prompt_files.lines import MAX_CHUNK_BYTES, MAX_LINE_BYTES, Line, csv_records, lines, read_csv_header, take
from common.prompt_files.parquet import parquet_rows
from common.recipes.recipe import Draft

LONG = b"x" * 900_000 + b"\n"


def test_few_large_lines_are_in_memory_at_once_and_none_is_lost() -> None:
    found = lines((LONG for _ in range(40)), "txt")
    chunks = list(iter(lambda: take(found, 5000), []))
    assert [line.number for chunk in chunks for line in chunk] == list(range(1, 41))
    assert all(sum(len(line.content) for line in chunk) < MAX_CHUNK_BYTES + len(LONG) for chunk in chunks)


def test_no_more_lines_are_taken_than_the_limit() -> None:
    found = lines([b"a\nb\n\nc\nd\n"], "txt")
    assert [line.content for line in take(found, 3)] == [b"a", b"b", b"c"]
    assert [line.content for line in take(found, 3)] == [b"d"]


def test_a_line_that_is_too_long_is_an_error() -> None:
    long = b"y" * (2 * MAX_LINE_BYTES)
    blocks = [b"a\n" + long[:700_000], long[700_000:], long + b"\nb"]
    assert outcomes(lines(blocks, "txt")) == [
        {"prompt": "a"},
        f"2: it is longer than {MAX_LINE_BYTES:,} bytes; shorten it.",
        {"prompt": "b"},
    ]


# The table of names


def test_the_columns_are_the_fields_of_a_recipe_and_no_name_means_two() -> None:
    names = [name for names in columns.NAMES.values() for name in names]
    assert set(columns.NAMES) == set(Draft.model_fields)
    assert len(set(names)) == len(names)
    kinds = {*columns.INTEGERS, *columns.FLOATS, *columns.LISTS}
    texts = {"prompt", "negative_prompt", "model", "scheduler", "mode", "source", "mask", "format"}
    assert kinds | texts == set(Draft.model_fields)


def test_names_ignore_case_spaces_and_hyphens() -> None:
    assert [
        field_of(name) for name in ("提示词", "负面提示词", "Negative Prompt", " SEED ", "negative-prompt", "宽")
    ] == [
        "prompt",
        "negative_prompt",
        "negative_prompt",
        "seed",
        "negative_prompt",
        "width",
    ]
    assert field_of("Sampler") == "Sampler"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (["红色的圆形"], "no column is called prompt (or 提示词"),
        (["prompt", "stpes"], "'stpes' is no field of a recipe; rename or remove the column. The fields are prompt, "),
        (["prompt", "提示词"], "two columns mean prompt"),
    ],
)
def test_columns_that_are_not_clear_are_refused(header: Sequence[str], says: str) -> None:
    with pytest.raises(Invalid, match=re.escape(says)):
        columns_of(header)


def test_cells_become_values_of_their_field_or_stay_text() -> None:
    cells = {
        ("steps", "30"): 30,
        ("steps", "30.0"): 30,
        ("seed", "18446744073709551615"): 2**64 - 1,
        ("seed", "1.8e+19"): "1.8e+19",  # as a spreadsheet rounds it: that seed is lost
        ("guidance", "7.5"): 7.5,
        ("guidance", "much"): "much",
        ("seeds", "[1, 2]"): [1, 2],
        ("lora", "ink"): "ink",
        ("prompt", "30"): "30",
    }
    assert {key: parse_cell(*key) for key in cells} == cells


def test_keys_of_json_lines_have_the_same_names() -> None:
    found = lines(['{"提示词": "门", "种子": 7}\n{"prompt": "门", "提示词": "窗"}\n'.encode()], "jsonl")
    assert outcomes(found) == [
        {"prompt": "门", "seed": 7},
        "2: prompt is there twice, by different names; keep one of them.",
    ]


# CSV

SHEET = """提示词,负面提示词,种子,宽,引导,模型
"红色的圆形
在草地上",水印,7,64,7.5,mini-zh

,,,,,
"他说""好"", 就这样",,,,,
蓝色的星形,,8.0
"""
ROWS: list[dict[str, Any]] = [
    {
        "prompt": "红色的圆形\n在草地上",
        "negative_prompt": "水印",
        "seed": 7,
        "width": 64,
        "guidance": 7.5,
        "model": "mini-zh",
    },
    {"prompt": '他说"好", 就这样'},
    {"prompt": "蓝色的星形", "seed": 8},
]


def csv_lines(data: bytes, encoding: str = "utf-8", offset: int = 0, number: int = 0, block: int = 7) -> Iterator[Line]:
    def blocks(start: int) -> Iterator[bytes]:
        return iter([data[at : at + block] for at in range(start, len(data), block)])

    table = read_csv_header(blocks(0), encoding)
    start = max(offset, table.end)
    return csv_records(blocks(start), table, start, max(number, table.number))


def outcomes(found: Iterator[Line]) -> list[Any]:
    """The fields of each line; of a wrong one its number and the reason."""
    rows = list[Any]()
    for line in found:
        try:
            rows.append(line.fields())
        except Invalid as error:
            rows.append(f"{line.number}: {error.message}")
    return rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_is_read_as_any_program_writes_it(encoding: str, newline: str, delimiter: str) -> None:
    text = SHEET.replace(",", delimiter).replace("\n", newline)
    found = outcomes(csv_lines(text.encode(encoding), encoding.removesuffix("-sig")))
    wanted = [{key: as_in(value, newline, delimiter) for key, value in row.items()} for row in ROWS]
    assert found == wanted


def as_in(value: Any, newline: str, delimiter: str) -> Any:
    return value.replace("\n", newline).replace(",", delimiter) if isinstance(value, str) else value


def test_it_is_read_on_behind_any_record() -> None:
    data = SHEET.encode("gb18030")
    whole = list(csv_lines(data, "gb18030"))
    assert [(line.number, line.last) for line in whole] == [(2, 3), (6, 6), (7, 7)]
    for place, line in enumerate(whole):
        rest = list(csv_lines(data, "gb18030", line.end, line.last))
        assert [(one.number, one.end, one.fields()) for one in rest] == [
            (one.number, one.end, one.fields()) for one in whole[place + 1 :]
        ]


def test_errors_name_the_first_line_of_a_record_and_the_others_are_read() -> None:
    data = 'prompt,steps,\n一只猫, 水彩, 好\n"x" y,3\n\n红,三\n"open\n绿,2'
    assert outcomes(csv_lines(data.encode())) == [
        "2: '好' is in a column without a name; name the column or empty the cell.",
        """3: it is not CSV (',' expected after '"'); check its quotation marks: one at each end of a cell, and "" """
        "for one inside.",
        {"prompt": "红", "steps": "三"},
        '6: it is not CSV (unexpected end of data); check its quotation marks: one at each end of a cell, and "" for'
        " one inside.",
    ]
    assert outcomes(csv_lines("prompt\n一只猫, 水彩\n".encode())) == [
        "2: it has 2 cells for 1 columns; put a cell that has a comma in it in quotation marks."
    ]


def test_a_quote_that_is_never_closed_does_not_fill_the_memory() -> None:
    data = b"prompt,steps\n" + b'"\n","\n",' * 300_000 + b"\n"
    first = next(csv_lines(data, block=100_000))
    with pytest.raises(Invalid, match="longer than"):
        first.fields()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("红色的圆形\n", "Line 1 must name the columns: no column is called prompt"),
        ("\n\nprompt,prompt\n", "Line 3 must name the columns: two columns mean prompt"),
        ("\n", "The file is empty; its first line must name the columns"),
    ],
)
def test_a_sheet_needs_a_header(data: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        csv_lines(data.encode())


# Parquet


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    def write(data: dict[str, Any], **options: Any) -> Path:
        pq.write_table(pa.table(data), tmp_path / "prompts.parquet", **options)
        return tmp_path / "prompts.parquet"

    return write


def parquet_lines_of(file: Path, start: int = 0) -> tuple[int, list[Line]]:
    data = file.read_bytes()
    with parquet_rows(lambda offset, size: data[offset : offset + size], len(data), start) as rows:
        return rows.total, list(rows)


def test_rows_of_parquet_are_read_from_any_of_them_on(parquet: Callable[..., Path]) -> None:
    prompts = [f"红色的圆形 {n}\n" for n in range(1000)]
    file = parquet({"提示词": prompts, "种子": list(range(1000))}, row_group_size=300)
    for start in (0, 300, 899):
        total, found = parquet_lines_of(file, start)
        assert (total, found[0].number, found[-1].end, len(found)) == (1000, start + 1, 1000, 1000 - start)
        assert found[0].fields() == {"prompt": f"红色的圆形 {start}\n", "seed": start}


def test_rows_of_parquet_have_all_fields_of_json_lines(parquet: Callable[..., Path]) -> None:
    file = parquet(
        {
            "prompt": pa.array(["a", None, "c"]).dictionary_encode(),
            "steps": pa.array([30.0, None, float("nan")]),
            "guidance": [7, None, 5],
            "seeds": pa.array([[1, 2], None, None], pa.list_(pa.uint64())),
            "lora": [[{"name": "ink", "weight": 0.5}], None, None],
            "mask": pa.nulls(3),
        }
    )
    _, found = parquet_lines_of(file)
    first = {"prompt": "a", "steps": 30, "guidance": 7.0, "seeds": [1, 2], "lora": [{"name": "ink", "weight": 0.5}]}
    assert [(line.number, line.fields()) for line in found] == [(1, first), (3, {"prompt": "c", "guidance": 5.0})]


def test_a_file_that_is_no_table_of_prompts_is_refused(parquet: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("prompt\n")
    (tmp_path / "cut").write_bytes(parquet({"prompt": ["a" * 1000]}).read_bytes()[-100:])
    for make, says in (
        (lambda: parquet({"text": ["a"]}), "no column is called prompt"),
        (lambda: parquet({"prompt": ["a"], "mask": [b"x"]}), "column 'mask' is of type binary"),
        (lambda: tmp_path / "text", "it cannot be read as Parquet"),
        (lambda: tmp_path / "cut", "it cannot be read as Parquet"),
    ):
        with pytest.raises(Invalid, match=says):
            parquet_lines_of(make())


def test_a_file_that_unpacks_to_too_much_memory_is_refused(
    parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_lines, "MAX_MEMORY", 40_000_000)
    one = pa.array(["x" * 1_000_000] * 60)
    file = parquet(
        {"prompt": one}, use_dictionary=False, data_page_size=10**9, compression="zstd", write_batch_size=999
    )
    assert file.stat().st_size < 100_000
    with pytest.raises(Invalid, match="take more than 40,000,000 bytes to unpack"):
        parquet_lines_of(file)
    assert parquet_lines_of(parquet({"prompt": ["x"]}))[0] == 1


def test_a_killed_reader_is_unavailable(parquet: Callable[..., Path]) -> None:
    data = parquet({"prompt": ["x" * 5000] * 10_000}, compression="none", use_dictionary=False).read_bytes()
    with parquet_rows(lambda offset, size: data[offset : offset + size], len(data)) as rows:
        found = iter(rows)
        next(found)
        os.kill(rows._child.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            list(found)


def test_the_child_ends_with_its_parent() -> None:
    command = [*parquet_lines.READER, "0", str(parquet_lines.MAX_MEMORY)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    child.stdin.write(b"1000\n")
    child.stdin.close()
    assert child.wait(30) == 1
