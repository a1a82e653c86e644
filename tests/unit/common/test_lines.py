"""Files of prompts, line by line, from anywhere in them: JSON Lines, a prompt a line, CSV."""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from common.errors import Invalid
from common.prompt_files import raw_lines
from common.prompt_files.columns import Columns
from common.prompt_files.lines import GAP_LINES, STEP_BYTES, Gap, Line, lines, steps
from common.prompt_files.raw_lines import MAX_LINE_BYTES, count_line_ends
from common.prompt_files.sheets import MAX_HEADER_BYTES, csv_records, read_csv_header

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
    assert [(fields(line)["prompt"], line.number) for line in whole] == PLACES
    for place, line in enumerate(whole):
        rest = kept(lines(split(data[line.end :], block), format, line.end, line.last))
        assert [(one.number, one.end, fields(one)) for one in rest] == [
            (one.number, one.end, fields(one)) for one in whole[place + 1 :]
        ]
    assert count_line_ends(split(data, block)) == 6


@pytest.mark.parametrize("block", [1, 700_000])
def test_the_cr_of_a_line_that_is_too_long_ends_it(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_lines, "MAX_LINE_BYTES", 5)
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

    table = read_csv_header(blocks(0), encoding, Columns())
    start = max(offset, table.end)
    return csv_records(blocks(start), table, start, max(number, table.number))


def fields(line: Line) -> dict[str, Any]:
    return Columns().read(line.cells())[0]


def outcomes(found: Iterable[Line | Gap]) -> list[Any]:
    """The fields of each line; of a wrong one its number and the reason."""
    rows = list[Any]()
    for line in kept(found):
        try:
            rows.append(fields(line))
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
        assert [(one.number, one.end, fields(one)) for one in rest] == [
            (one.number, one.end, fields(one)) for one in whole[place + 1 :]
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
        fields(first)


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_without_a_header_has_numbered_columns(encoding: str, delimiter: str) -> None:
    data = '\n7,"红色的圆形",a\n8,"绿色的三角形",b\n'.replace(",", delimiter).encode(encoding)
    numbered = Columns({"prompt": "2", "seed": "1"}, ("3",))
    table = read_csv_header([data], encoding.removesuffix("-sig"), numbered)
    found = kept(csv_records([data[table.end :]], table, table.end, table.number))
    assert [(line.number, *numbered.read(line.cells())) for line in found] == [
        (2, {"prompt": "红色的圆形", "seed": 7}, {"3": "a"}),
        (3, {"prompt": "绿色的三角形", "seed": 8}, {"3": "b"}),
    ]
    assert found[-1].end == len(data)


def test_a_sheet_without_a_header_may_begin_with_a_bom() -> None:
    data = "红色的圆形\n".encode("utf-8-sig")
    numbered = Columns({"prompt": "1"})
    table = read_csv_header([data], "utf-8", numbered)
    (line,) = kept(csv_records([data], table, table.end, table.number))
    assert numbered.read(line.cells()) == ({"prompt": "红色的圆形"}, {})


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
