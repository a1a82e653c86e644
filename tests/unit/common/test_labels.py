"""The reader of AI labels on files that others wrote, and `huafang label verify`."""

import io
import json
import struct
import time
import tracemalloc
import zlib
from html import escape
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.labels.label import NAMESPACE
from common.labels.reader import labelled_xmp, read_labels
from tests.support.command_line import CommandLine

ELEMENTS = {
    "Label": "1",
    "ContentProducer": "001191110102MAD55U9H0F10002",
    "ProduceID": "98ae6b12",
    "ReservedCode1": "",
    "ContentPropagator": "001191110102MAD55U9H0F10002",
    "PropagateID": "98ae6b12",
    "ReservedCode2": "",
}
JSON = json.dumps(ELEMENTS)
WRAPPED = json.dumps({"AIGC": ELEMENTS})
SHEET = Image.new("RGB", (40, 30), "red")


def xmp(inner: str, attribute: str = "", prefix: str = "TC260") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:{prefix}="{NAMESPACE}"{attribute}>{inner}</rdf:Description></rdf:RDF>'
        "</x:xmpmeta>"
    ).encode()


def element(text: str = JSON, prefix: str = "TC260") -> bytes:
    return xmp(f"<{prefix}:AIGC>{escape(text)}</{prefix}:AIGC>", prefix=prefix)


def saved(format: str, **options: object) -> bytes:
    SHEET.save(file := io.BytesIO(), format, **options)
    return file.getvalue()


def png(*texts: tuple[str, str], is_compressed: bool = False, itxt: bool = True) -> bytes:
    info = PngInfo()
    for keyword, text in texts:
        (info.add_itxt if itxt else info.add_text)(keyword, text, zip=is_compressed)
    return saved("PNG", pnginfo=info)


def exif(comment: bytes) -> Image.Exif:
    found = Image.Exif()
    found[0x0131] = "a camera"
    found.get_ifd(0x8769)[0x9286] = comment
    return found


WRITTEN = {
    "an element in PNG": png(("XML:com.adobe.xmp", element().decode())),
    "a compressed packet in PNG": png(("XML:com.adobe.xmp", element().decode()), is_compressed=True),
    "an attribute in JPEG": saved("JPEG", xmp=xmp("", f' TC260:AIGC="{escape(JSON)}"')),
    "another prefix in WebP": saved("WEBP", xmp=element(prefix="ns1")),
    "a packet with a wrapper and padding": saved(
        "JPEG",
        xmp=b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>' + element() + b" " * 99 + b'<?xpacket end="w"?>\0',
    ),
    "an XML declaration behind the wrapper": saved(
        "WEBP", xmp=b'<?xpacket begin=""?><?xml version="1.0"?>' + element()
    ),
    "the wrapped object": png(("XML:com.adobe.xmp", element(WRAPPED).decode())),
    "a text chunk of that name": png(("AIGC", JSON), itxt=False),
    "a compressed text chunk of that name": png(("AIGC", JSON), itxt=False, is_compressed=True),
    "an Exif comment in JPEG": saved("JPEG", exif=exif(b"ASCII\0\0\0" + WRAPPED.encode())),
    "an Exif comment in WebP": saved("WEBP", exif=exif(b"UNICODE\0" + WRAPPED.encode("utf-16-be"))),
    "an Exif comment in PNG": saved("PNG", exif=exif(b"ASCII\0\0\0" + WRAPPED.encode())),
    "a comment in JPEG": saved("JPEG", comment=WRAPPED.encode()),
    "another format": saved("TIFF") + element(),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_label_is_read_wherever_programs_put_it(how: str) -> None:
    (found,) = read_labels(WRITTEN[how])
    assert found.elements == ELEMENTS


def test_a_chunk_behind_the_pixels_is_read() -> None:
    plain = saved("PNG")
    body = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + element()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    assert len(read_labels(plain[:-12] + chunk + plain[-12:])) == 1


NOT_LABELS = {
    "a plain picture": saved("PNG"),
    "a prompt that speaks of labels": png(("recipe", json.dumps({"prompt": f"AIGC {WRAPPED} {element().decode()}"}))),
    "a comment that quotes one": saved("JPEG", comment=json.dumps({"prompt": WRAPPED}).encode()),
    "a property of another namespace": saved("JPEG", xmp=element().replace(NAMESPACE.encode(), b"http://x/")),
    "an empty file": b"",
    "a text file": b"AIGC " + JSON.encode(),
}


@pytest.mark.parametrize("what", NOT_LABELS)
def test_what_is_no_label_is_not_taken_for_one(what: str) -> None:
    assert read_labels(NOT_LABELS[what]) == []
    assert labelled_xmp(NOT_LABELS[what]) is None


@pytest.mark.parametrize("how", WRITTEN)
def test_a_file_that_ends_or_lies_anywhere_is_read_without_an_error(how: str) -> None:
    data = WRITTEN[how]
    for at in range(0, len(data), 7):
        read_labels(data[:at])
        read_labels(data[:at] + b"\xff\0\xff" + data[at + 3 :])


def test_a_hostile_packet_costs_little() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">' + b"".join(
        b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 9) for n in range(1, 9)
    )
    deep = b"<x:xmpmeta>" + b"<a>" * 200_000
    began = time.process_time()
    for packet in (bomb + b"]>" + element(), deep, b"<" * 900_000, b"<x:xmpmeta" * 90_000):
        assert read_labels(saved("WEBP", xmp=packet)) == []
        read_labels(packet)
    assert time.process_time() - began < 2


def test_a_text_that_inflates_without_end_is_cut() -> None:
    body = b"zTXtAIGC\0\0" + zlib.compress(b"<a>" * 20_000_000, 9)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    tracemalloc.start()
    (found,) = read_labels(saved("PNG")[:33] + chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.elements is None
    assert peak < 30_000_000


# The command


@pytest.fixture
def huafang(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def test_verify_says_what_it_finds(huafang: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(WRITTEN["an element in PNG"])
    found = huafang("label", "verify", str(tmp_path / "a.png"))
    assert found.code == 0
    (row,) = found.json
    assert (row["verdict"], row["problems"], row["labels"][0]["elements"]) == ("labelled", [], ELEMENTS)
    human = huafang("label", "verify", "--format", "human", str(tmp_path / "a.png")).out
    assert {"labelled", "generated", ELEMENTS["ContentProducer"]} <= set(human.split())


INCOMPLETE = {
    "Label is '9', not 1, 2 or 3": {**ELEMENTS, "Label": "9"},
    "ProduceID is missing": {name: value for name, value in ELEMENTS.items() if name != "ProduceID"},
    "ContentProducer is empty": {**ELEMENTS, "ContentProducer": ""},
    "ContentProducer has characters that annex E does not list": {**ELEMENTS, "ContentProducer": "画坊"},
    "PropagateID is no text": {**ELEMENTS, "PropagateID": 7},
}


@pytest.mark.parametrize("problem", INCOMPLETE)
def test_verify_names_what_a_label_lacks(huafang: CommandLine, tmp_path: Path, problem: str) -> None:
    (tmp_path / "a.webp").write_bytes(saved("WEBP", xmp=element(json.dumps(INCOMPLETE[problem]))))
    found = huafang("label", "verify", str(tmp_path / "a.webp"))
    assert (found.code, found.json[0]["verdict"], found.json[0]["problems"]) == (1, "incomplete", [problem])


def test_verify_wants_one_label_that_is_an_object(huafang: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "two.png").write_bytes(png(("AIGC", JSON), ("XML:com.adobe.xmp", element().decode())))
    (tmp_path / "none.png").write_bytes(png(("AIGC", "yes")))
    found = huafang("label", "verify", str(tmp_path / "two.png"), str(tmp_path / "none.png"))
    assert found.code == 1
    assert [row["problems"] for row in found.json] == [
        ["the file has 2 labels, and clause 6.1 wants one"],
        ["the text in PNG iTXt AIGC is no JSON object"],
    ]


def test_the_exit_code_tells_labelled_files_from_others(huafang: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(WRITTEN["an attribute in JPEG"])
    (tmp_path / "b.jpg").write_bytes(saved("JPEG"))
    labelled, plain, missing = (str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    codes = [
        huafang("label", "verify", *files).code for files in ([plain], [missing], [labelled, plain], [labelled] * 2)
    ]
    assert codes == [4, 1, 6, 0]
    assert huafang("label", "verify", labelled, plain).err.strip() == "huafang: 1 of 2 files have no complete AI label."
