"""Files of prompts converted in a child process: what large and hostile ones take, and how the child ends."""

import gzip
import io
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import Invalid, NoRoom, Unavailable
from common.prompt_files.conversion import convert as conversion
from common.prompt_files.conversion.convert import convert
from tests.support.prompt_tables import parquet, workbook


def converted(data: bytes, kind: str, **options: Any) -> list[bytes]:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        convert(source, target, kind, **options)
        target.seek(0)
        return target.read().split(b"\n")


def test_each_row_has_its_line_and_an_empty_one_a_blank_line() -> None:
    rows = [["prompt", "n"], ["红", 1], [None, None], [None, float("nan")], ["绿", None]]
    head, *lines = converted(parquet(rows, {"n": pa.float64()}), "parquet")
    assert (json.loads(head), json.loads(lines[0])) == (["prompt", "n"], ["红", 1.0])
    assert lines[1:3] == [b"", b""]
    assert (json.loads(lines[3]), lines[4:]) == (["绿", None], [b""])


def test_three_million_rows_of_nothing_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MAX_S", 10)
    nulls = pa.nulls(3_000_000, pa.string())
    for prompts in (nulls, pa.concat_arrays([nulls, pa.array(["红"])])):
        file = io.BytesIO()
        pq.write_table(pa.table({"prompt": prompts}), file)
        assert len(file.getvalue()) < 10_000
        if prompts is nulls:
            with pytest.raises(Invalid, match="no prompts"):
                converted(file.getvalue(), "parquet")
        else:
            assert converted(file.getvalue(), "parquet")[3_000_000:] == [b"", '["红"]'.encode(), b""]


def test_rows_that_are_large_are_unpacked_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is in the file once, and takes more memory than there is when all its rows are unpacked."""
    monkeypatch.setattr(conversion, "MAX_MEMORY", 100_000_000)
    data = parquet([["prompt"], *(["x" * 5000],) * 60_000])
    assert len(data) < 100_000
    assert len(converted(data, "parquet")) == 60_002


BOMB = gzip.compress(bytes(300_000_000))


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "MAX_MEMORY", 40_000_000)
    monkeypatch.setattr(conversion, "MAX_S", 2)


def hostile() -> Iterator[tuple[str, bytes, dict[str, Any], str]]:
    one = {"use_dictionary": False, "data_page_size": 10**9, "compression": "zstd", "write_batch_size": 999}
    yield "parquet", parquet([["prompt"], *(["x" * 1_000_000],) * 60], **one), {}, "takes more than 40,000,000 bytes"
    yield "parquet", parquet([["prompt"], *(["x" * 9],) * 300_000]), {"most": 10**6}, "unpacks to more than 1,000,000"
    yield ".gz", BOMB, {"most": 10**7}, "unpacks to more than 10,000,000 bytes"
    yield "json", b"[" + b" " * 50_000_000 + b'"' + b"x" * 9_000_000, {}, "Object 1 of the file is not JSON"
    yield "xlsx", workbook(b"<row>" + b"<c><v>1</v></c>" * 3_000_000 + b"</row>"), {}, "40,000,000 bytes of memory"
    yield "xlsx", workbook(b"<row/>" * 40_000_000), {}, "takes more than 2 seconds of a processor"


@pytest.mark.parametrize(("kind", "data", "options", "says"), list(hostile()))
def test_a_file_that_unpacks_to_too_much_is_refused_in_one_sentence(
    limits: None, kind: str, data: bytes, options: dict[str, Any], says: str
) -> None:
    assert len(data) < 60_000_000
    with pytest.raises(Invalid, match=says) as refusal:
        converted(data, kind, **options)
    assert len(refusal.value.message) < 200


def test_a_child_that_is_killed_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(conversion, "CONVERTER", ("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"))

    def kill() -> None:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(Unavailable, match="was killed"):
        converted(b"", "json")
    thread.join()


def test_a_full_disk_is_named() -> None:
    with tempfile.TemporaryFile() as source, open("/dev/full", "wb") as target:
        source.write(b'[{"prompt": "x"}]')
        with pytest.raises(NoRoom):
            convert(source, target, "json")


def test_a_child_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CONVERTER", ("sh", "-c", "exec sleep 60"))
    monkeypatch.setattr(conversion, "MAX_WAIT_S", 0.1)
    began = time.monotonic()
    with pytest.raises(Invalid, match="seconds of a processor"):
        converted(b"", "json")
    assert time.monotonic() - began < 5
