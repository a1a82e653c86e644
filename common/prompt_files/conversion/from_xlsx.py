"""The first sheet of a workbook as a table of lines, see `common.prompt_files.sheets`. Runs in the child process only.

The first row that is not empty names the columns. Formulas have the values that were calculated last.
"""

import datetime
import json
from typing import Any, BinaryIO

from python_calamine import CalamineError, CalamineWorkbook

from common.errors import Invalid
from common.prompt_files import sentence

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def convert(source: BinaryIO, target: BinaryIO, kind: str, codec: str) -> None:
    """Raises Invalid if the file is no workbook, or has no row."""
    try:
        sheet = CalamineWorkbook.from_filelike(source).get_sheet_by_index(0)
        rows = ([_plain(cell) for cell in row] for row in sheet.iter_rows())
    except (CalamineError, IndexError) as error:
        raise Invalid(sentence("xlsx_unreadable", reason=str(error)[:200])) from None
    behind = list[bytes]()
    for row in rows:
        behind.append(b"\n")
        if any(cell is not None for cell in row):
            while row and row[-1] is None:
                row.pop()
            target.write(to_json(["" if cell is None else str(cell) for cell in row]).encode() + b"\n")
            break
    else:
        raise Invalid(sentence("file_without_rows"))
    target.writelines(behind)
    for row in rows:
        target.write((to_json(row) if any(cell is not None for cell in row) else "").encode() + b"\n")


def _plain(cell: Any) -> Any:
    if isinstance(cell, str):
        return cell if cell.strip() else None
    return cell.isoformat() if isinstance(cell, datetime.date | datetime.time) else cell
