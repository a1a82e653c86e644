"""The sentences about files of prompts: what is wrong, and what to do. A reason follows the line that it is about."""

from common.sentences import Sentences

sentence = Sentences(
    {
        # Where
        "at_line": "Line {number}: {reason}",
        "at_row": "Row {number}: {reason}",
        "in_file": "The file: {reason}",
        "header_wrong": "Line {number} must name the columns: {reason}",
        # Lines
        "line_too_long": "it is longer than {most:,} bytes; shorten it.",
        "not_encoded": "it is not {encoding}; save the file as UTF-8.",
        "not_json": 'it is not JSON; write an object such as {{"prompt": "…"}}.',
        "not_an_object": 'it is not a JSON object; write one such as {{"prompt": "…"}}.',
        "key_twice": "{field} is there twice, by different names; keep one of them.",
        # CSV
        "no_header": "The file is empty; its first line must name the columns, one of them prompt.",
        "csv_record_too_long": "its row is longer than {most:,} bytes; close the quotation mark that it opens.",
        "csv_quotes_wrong": (
            'it is not CSV ({reason}); check its quotation marks: one at each end of a cell, and "" for one inside.'
        ),
        "too_many_cells": (
            "it has {cells} cells for {columns} columns; put a cell that has a {delimiter} in it in quotation marks."
        ),
        "cell_without_column": "{cell!r} is in a column without a name; name the column or empty the cell.",
        # Columns
        "no_prompt_column": "no column is called prompt (or {names}); rename one of {columns}.",
        "unknown_columns": "{columns} is no field of a recipe; rename or remove the column. The fields are {fields}.",
        "column_twice": "two columns mean {field}; remove or rename one of them.",
        # Parquet
        "pyarrow_missing": "pyarrow is not installed on this host; run pip install 'huafang[datasets]' there.",
        "parquet_unreadable": "it cannot be read as Parquet ({reason}); write it again.",
        "parquet_crashed": "The file cannot be read as Parquet: its reader crashed. Write it again, or as CSV.",
        "parquet_reader_killed": "The process that reads the Parquet file was killed; the farm starts it again.",
        "parquet_too_many_rows": "it has {rows:,} rows; at most {most:,} can be read. Split it.",
        "parquet_column_type": "column {column!r} is of type {type}; convert it to text, numbers or lists of them.",
        "parquet_pages_too_large": "its pages take more than {most:,} bytes to unpack; write it with smaller pages.",
    }
)
