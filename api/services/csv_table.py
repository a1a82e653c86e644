"""Tables as CSV for spreadsheets: no cell is a formula, whoever chose its text."""

import csv
import io
import json
from collections.abc import Iterable
from typing import Any

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formulas begin


def write(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A heading, and a line for each row. A text that begins like a formula is quoted: `=1` is written as `'=1`; an
    object as JSON; None as nothing.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows(map(_cell, row) for row in rows)
    return table.getvalue()


def _cell(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(FORMULAS) else text
