"""What a file of prompts is, told by its name and its first bytes; and the encoding of its text, by all of them."""

import io

import pytest

from common.errors import Invalid
from common.prompt_files.encodings import as_utf8, codec_of
from common.prompt_files.formats import binary_format_of, compression_of, format_of, text_format_of


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.txt", "txt"),
        ("a.JSONL", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.json", "json"),
        ("a.csv.gz", "csv"),
        ("a.tsv.zst", "tsv"),
        ("train-00000.parquet", "parquet"),
        ("a.xlsx", "xlsx"),
        ("a.gz", None),
        ("prompts", None),
    ],
)
def test_a_name_says_a_format(name: str, format: str | None) -> None:
    assert format_of(name) == format


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "jsonl"),
        ('\ufeff\n  { "prompt": "a", }\n', "jsonl"),  # a wrong one too: its error names the line
        ('{\n "prompt": "a"\n}', "json"),
        ('[\n {"prompt": "a"}]', "json"),
        ("[红色]的圆形\n", "txt"),
        ("{红色|蓝色}的圆形\n", "txt"),
        ("提示词;步数\r\n红色的圆形;20\r\n", "csv"),
        ('"prompt",seed\r红色的圆形,7\r', "csv"),
        ("sep=;\nprompt;seed\n", "csv"),
        (",prompt,seed\n0,红,7\n", "csv"),
        ("prompt, with a seed\n", "txt"),
        ("prompt\n", "txt"),
        ("", "txt"),
    ],
)
def test_text_without_a_name_says_its_format(text: str, format: str) -> None:
    assert text_format_of(text, None) == format


def test_a_name_decides_between_formats_that_begin_alike() -> None:
    assert text_format_of("prompt\n", "csv") == "csv"
    assert text_format_of("prompt,seed\n", "txt") == "txt"
    assert text_format_of("[1]", "jsonl") == "json"
    assert text_format_of('{"prompt": "a"\n{"prompt": "b"}', "jsonl") == "jsonl"
    assert text_format_of("no JSON", "jsonl") == "jsonl"


def test_bytes_say_what_is_no_text() -> None:
    assert [binary_format_of(head) for head in (b"PAR1\x15\x04", b"PK\x03\x04", b"PK", b"")] == [
        "parquet",
        "xlsx",
        None,
        None,
    ]
    assert [compression_of(head) for head in (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"")] == [".gz", ".zst", None]


TEXT = "一二三,红色的圆形\r\n夜空中的月亮\r\n"


@pytest.mark.parametrize(
    ("data", "codec"),
    [
        (b"", "utf-8"),
        (b"plain", "utf-8"),
        (TEXT.encode(), "utf-8"),
        (TEXT.encode("utf-8-sig"), "utf-8"),
        (TEXT.encode("gbk"), "gb18030"),
        ("𠮷野家".encode("gb18030"), "gb18030"),
        (TEXT.encode("utf-16"), "utf-16-le"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
        ("prompt,seed\nred,7\n".encode("utf-16-le"), "utf-16-le"),
        ("prompt,seed\nred,7\n".encode("utf-16-be"), "utf-16-be"),
        (("一" * 99 + "\n").encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode() + b"\0" + TEXT.encode() * 10, "utf-8"),
    ],
)
def test_the_encoding_is_told_by_the_whole_file(data: bytes, codec: str) -> None:
    assert codec_of(io.BytesIO(data)) == codec


def test_one_byte_at_the_end_of_a_large_file_decides() -> None:
    text = "红色的圆形\n" * 200_000
    assert codec_of(io.BytesIO(text.encode())) == "utf-8"
    with pytest.raises(Invalid, match=r"neither UTF-8 \(line 200,?001\) nor GB18030"):
        codec_of(io.BytesIO(text.encode() + b"\xff"))


def test_utf_16_becomes_utf_8_wherever_a_block_ends() -> None:
    text = "𠮷红\n" * 300_000
    assert b"".join(as_utf8(io.BytesIO(text.encode("utf-16-le")), "utf-16-le")).decode() == text
