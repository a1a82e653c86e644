"""Tables of prompts as programs write them: the same rows in every format, and a small writer of XLSX."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq

SHEET = "xl/worksheets/sheet1.xml"
PARTS = {
    "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/xl/workbook.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>',
    "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship'
    ' Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"'
    ' Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": '<workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r='
    '"http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets><sheet name="Sheet1" sheetId="1"'
    ' r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="r1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet"'
    ' Target="worksheets/sheet1.xml"/></Relationships>',
}
Rows = Sequence[Sequence[Any]]  # the first one names the columns; None is an empty cell


def xlsx(rows: Rows) -> bytes:
    return workbook("".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows).encode())


def workbook(rows: bytes) -> bytes:
    """A workbook whose sheet has these rows in XML."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in PARTS.items():
            archive.writestr(name, text)
        with archive.open(SHEET, "w") as sheet:
            sheet.write(b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>')
            sheet.write(rows)
            sheet.write(b"</sheetData></worksheet>")
    return file.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return "<c/>"
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t xml:space="preserve">{escape(value)}</t></is></c>'
    return f"<c><v>{value}</v></c>"


def csv_text(rows: Rows, delimiter: str = ",") -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def json_lines(rows: Rows) -> str:
    return "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in objects(rows))


def objects(rows: Rows) -> list[dict[str, Any]]:
    names, *cells = rows
    return [{n: cell for n, cell in zip(names, row, strict=True) if cell is not None} for row in cells]


def parquet(rows: Rows, types: dict[str, Any] | None = None, **options: Any) -> bytes:
    names, *cells = rows
    columns = zip(*cells, strict=True) if cells else [()] * len(names)
    arrays = [pa.array(list(c), (types or {}).get(n)) for n, c in zip(names, columns, strict=True)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, list(names)), file, **options)
    return file.getvalue()


def gz(data: bytes) -> bytes:
    return gzip.compress(data)
