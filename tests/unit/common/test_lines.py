"""Files of prompts, line by line, from anywhere in them: JSON Lines, a prompt a line, CSV, Parquet."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import Invalid, Unavailable
from common.prompt_files import columns
from common.prompt_files import lines as lines_module
from common.prompt_files import parquet as parquet_lines
from common.prompt_files.columns import columns_of, field_of, parse_cell
from common.prompt_files.lines import (
    GAP_LINES,
    MAX_HEADER_BYTES,
    MAX_LINE_BYTES,
    STEP_BYTES,
    Gap,
    Line,
    count_line_ends,
    csv_records,
    lines,
    read_csv_header,
    steps,
)
from common.prompt_files.parquet import parquet_rows
from common.recipes.recipe import Draft

LONG = b"x" * 900_000 + b"\n"


def test_few_large_lines_are_in_memory_at_once_and_none_is_lost() -> None:
    found = list(steps(lines((LONG for _ in range(40)), "txt"), 5000))
    assert [line.number for step in found for line in step.lines] == list(range(1, 41))
    assert all(sum(len(line.content) for line in step.lines) < STEP_BYTES + len(LONG) for step in found)


def test_a_step_has_no_more_lines_than_asked_and_the_blank_ones_behind_them() -> None:
    found = list(steps(lines([b"a\nb\n\nc\n\n"], "txt"), 2))
    assert [[line.content for line in step.lines] for step in found] == [[b"a", b"b"], [b"c"]]
    assert [(step.last, step.end, step.is_last) for step in found] == [(2, 4, False), (5, 8, True)]


def test_a_line_that_is_too_long_is_an_error() -> None:
    long = b"y" * (2 * MAX_LINE_BYTES)
    blocks = [b"a\n" + long[:700_000], long[700_000:], long + b"\nb"]
    assert outcomes(lines(blocks, "txt")) == [
        {"prompt": "a"},
        f"2: it is longer than {MAX_LINE_BYTES:,} bytes; shorten it.",
        {"prompt": "b"},
    ]


# Line ends

TEXT = "红色的圆形\r\n\r\n绿色的三角形\r蓝色的星形\n\r小狗\n"
PLACES = [("红色的圆形", 1), ("绿色的三角形", 3), ("蓝色的星形", 4), ("小狗", 6)]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("format", ["txt", "jsonl"])
def test_cr_lf_and_crlf_end_a_line_wherever_a_block_ends(format: str, block: int) -> None:
    rows = re.sub("[^\r\n]+", r'{"prompt": "\g<0>"}', TEXT) if format == "jsonl" else TEXT
    data = rows.encode()
    whole = kept(lines(split(data, block), format))
    assert [(line.fields()["prompt"], line.number) for line in whole] == PLACES
    for place, line in enumerate(whole):
        rest = kept(lines(split(data[line.end :], block), format, line.end, line.last))
        assert [(one.number, one.end, one.fields()) for one in rest] == [
            (one.number, one.end, one.fields()) for one in whole[place + 1 :]
        ]
    assert count_line_ends(split(data, block)) == 6


@pytest.mark.parametrize("block", [1, 700_000])
def test_the_cr_of_a_line_that_is_too_long_ends_it(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 5)
    data = b"a\r" + b"y" * 20 + b"\r\nb\r"
    assert [(line.number, line.end) for line in kept(lines(split(data, block), "txt"))] == [(1, 2), (2, 24), (3, 26)]


def split(data: bytes, block: int) -> Iterator[bytes]:
    return iter([data[at : at + block] for at in range(0, len(data), block)])


def kept(found: Iterable[Line | Gap]) -> list[Line]:
    return [line for line in found if isinstance(line, Line)]


# Where nothing is to be yielded


@pytest.mark.parametrize("format", ["txt", "jsonl", "csv"])
def test_readers_report_what_they_pass_over(format: str) -> None:
    """Blank lines, and the blocks of a line that is too long: each report is where a reader can go on."""
    head = b"prompt\n" if format == "csv" else b""
    blank = b"\n" * 5000
    long = b"x" * (5 * MAX_LINE_BYTES)
    data = head + blank + long + b"\n" + blank
    found = list(reader(format, data, MAX_LINE_BYTES))
    gaps = [one for one in found if isinstance(one, Gap)]
    assert len(kept(found)) == 1
    assert len(gaps) >= 10 + 4
    assert max(b.last - a.last for a, b in pairwise(found)) <= GAP_LINES
    assert found[-1] == Gap(data.count(b"\n"), len(data))
    for gap in gaps:
        assert list(reader(format, data, MAX_LINE_BYTES, gap.end, gap.last))[-1] == found[-1]


def reader(format: str, data: bytes, block: int, offset: int = 0, number: int = 0) -> Iterator[Line | Gap]:
    if format == "csv":
        return csv_lines(data, offset=offset, number=number, block=block)
    return lines(split(data[offset:], block), format, offset, number)


# The table of names


def test_the_columns_are_the_fields_of_a_recipe_and_no_name_means_two() -> None:
    names = [name for names in columns.NAMES.values() for name in names]
    assert set(columns.NAMES) == set(Draft.model_fields)
    assert len(set(names)) == len(names)
    kinds = {*columns.INTEGERS, *columns.FLOATS, *columns.LISTS}
    texts = {"prompt", "negative_prompt", "model", "scheduler", "mode", "source", "mask", "style", "format"}
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
    nested = "[" * 100_000
    assert parse_cell("lora", nested) == nested


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


def csv_lines(
    data: bytes, encoding: str = "utf-8", offset: int = 0, number: int = 0, block: int = 7
) -> Iterator[Line | Gap]:
    def blocks(start: int) -> Iterator[bytes]:
        return iter([data[at : at + block] for at in range(start, len(data), block)])

    table = read_csv_header(blocks(0), encoding)
    start = max(offset, table.end)
    return csv_records(blocks(start), table, start, max(number, table.number))


def outcomes(found: Iterable[Line | Gap]) -> list[Any]:
    """The fields of each line; of a wrong one its number and the reason."""
    rows = list[Any]()
    for line in kept(found):
        try:
            rows.append(line.fields())
        except Invalid as error:
            rows.append(f"{line.number}: {error.message}")
    return rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
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
    whole = kept(csv_lines(data, "gb18030"))
    assert [(line.number, line.last) for line in whole] == [(2, 3), (6, 6), (7, 7)]
    for place, line in enumerate(whole):
        rest = kept(csv_lines(data, "gb18030", line.end, line.last))
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
    first = next(one for one in csv_lines(data, block=100_000) if isinstance(one, Line))
    with pytest.raises(Invalid, match="longer than"):
        first.fields()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("红色的圆形\n", "Line 1 must name the columns: no column is called prompt"),
        ("\n\nprompt,prompt\n", "Line 3 must name the columns: two columns mean prompt"),
        ("\n", "The file is empty; its first line must name the columns"),
        ("\r" * 1_100_000 + "prompt", "The first 1,000,000 bytes of the file are blank"),
        ("prompt" * 33_000, "Line 1 must name the columns: it is longer than 100,000 bytes"),
        ("prompt," * 200_000, "Line 1 must name the columns: it is longer than 100,000 bytes"),
        ("," * MAX_HEADER_BYTES, "Line 1 must name the columns: no column is called prompt"),
    ],
)
def test_a_sheet_needs_a_header(data: str, says: str) -> None:
    with pytest.raises(Invalid, match=re.escape(says)):
        csv_lines(data.encode(), block=100_000)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x," * 200_000, "it has 200001 cells for 1 columns"),
        ("x" * 200_000, "it is not CSV (field larger than field limit (131072))"),
    ],
)
def test_an_odd_record_is_a_wrong_line(row: str, says: str) -> None:
    data = f"prompt\n{row}\n红\n".encode()
    *_, last = outcomes(csv_lines(data, block=100_000))
    assert last == {"prompt": "红"}
    assert says in outcomes(csv_lines(data, block=100_000))[0]


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
        found = kept(rows)
        return rows.total, found


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


def test_rows_with_nothing_in_them_are_passed_over_and_counted(parquet: Callable[..., Path]) -> None:
    rows = 300_000
    prompts = pa.array([None] * rows).cast(pa.string()).to_pylist()
    prompts[150_000] = "红色的圆形"
    file = parquet({"prompt": prompts, "guidance": [None, float("nan")] * (rows // 2)})
    data = file.read_bytes()
    with parquet_rows(lambda offset, size: data[offset : offset + size], len(data)) as opened:
        found = list(opened)
    assert [(one.number, one.fields()) for one in kept(found)] == [(150_001, {"prompt": "红色的圆形"})]
    assert found[-1] == Gap(rows, rows)
    passed = [one.last for one in found if isinstance(one, Gap)]
    assert passed == sorted(passed)
    assert len(set(passed)) < 20
    total, rest = parquet_lines_of(file, 150_001)
    assert (total, rest) == (rows, [])


def test_a_silent_reader_is_reported(parquet: Callable[..., Path]) -> None:
    data = parquet({"prompt": ["x"]}).read_bytes()
    with parquet_rows(lambda offset, size: data[offset : offset + size], len(data)) as opened:
        os.kill(opened._child.pid, signal.SIGSTOP)
        found = iter(opened)
        assert [next(found) for _ in range(3)] == [Gap(0, 0)] * 3
        os.kill(opened._child.pid, signal.SIGCONT)
        assert [line.fields() for line in kept(found)] == [{"prompt": "x"}]


def test_rows_that_are_large_are_unpacked_few_at_a_time(
    parquet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is in the file once, and takes more memory than there is when all its rows are unpacked."""
    monkeypatch.setattr(parquet_lines, "MAX_MEMORY", 100_000_000)
    file = parquet({"prompt": ["x" * 5000] * 60_000})
    assert file.stat().st_size < 100_000
    data = file.read_bytes()
    with parquet_rows(lambda offset, size: data[offset : offset + size], len(data)) as opened:
        found = islice((one for one in opened if isinstance(one, Line)), 1000)
        assert [line.number for line in found] == list(range(1, 1001))


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


def test_a_row_that_is_too_long_is_not_sent(parquet: Callable[..., Path]) -> None:
    _, found = parquet_lines_of(parquet({"prompt": ["x" * (MAX_LINE_BYTES + 1), "红"]}))
    assert outcomes(found) == [f"1: it is longer than {MAX_LINE_BYTES:,} bytes; shorten it.", {"prompt": "红"}]


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
        assert any(isinstance(one, Line) for one in found)
        os.kill(rows._child.pid, signal.SIGKILL)
        with pytest.raises(Unavailable):
            list(found)


def test_the_child_ends_with_its_parent() -> None:
    command = [*parquet_lines.READER, "0", str(parquet_lines.MAX_MEMORY)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    child.stdin.write(b"1000\n")
    child.stdin.close()
    assert child.wait(30) == 1
