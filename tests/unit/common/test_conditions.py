"""The condition of a dataset: which rows it is true of, and what is refused before anything is written."""

import pytest
from pydantic import ValidationError

from common.datasets.conditions import MAX_DEPTH, MAX_LENGTH
from common.datasets.layout import DatasetPlan

ROW = {
    "status": "stored",
    "prompt": "it's",
    "steps": 20,
    "guidance": None,
    "seed": 2**64 - 1,
    "meta": {"kind": "cat", "id": 5, "share": "0.5", "good": True, "my label": "a", "list": [1]},
}


def chosen(where: str, **changes: object) -> bool:
    return DatasetPlan(where=where).chooses(ROW | changes)


@pytest.mark.parametrize(
    "where",
    [
        "status = 'stored'",
        "status == 'stored' AND steps >= 20",
        "steps > 19 and steps < 20.5 and steps <= 20 and steps <> 21 and steps != 19",
        "status = 'failed' or steps = 20",
        "status = 'stored' or status = 'failed' and steps = 1",  # `and` binds more strongly
        "(steps = 1 or steps = 20) and not (status = 'failed')",
        "not not steps = 20",
        "steps in (10, 20)",
        "status not in ('failed', 'flagged')",
        "guidance is null and steps is not null",
        "prompt = 'it''s'",
        "seed = 18446744073709551615",
        "meta.kind in ('cat', 'dog')",
        "meta.nothing is null",
        "\"meta.my label\" = 'a'",
        "meta.good = true and meta.good != false",
    ],
)
def test_what_is_true_of_the_row(where: str) -> None:
    assert chosen(where)


@pytest.mark.parametrize(
    "where",
    [
        "steps = 21",
        "guidance > 3",
        "not guidance > 3",  # as in SQL: neither true nor false
        "guidance != 3",
        "guidance in (1, 2)",
        "guidance not in (1, 2)",
        "guidance > 3 and steps = 20",
        "seed = 18446744073709551614",
        "meta.nothing = 'x'",
        "meta.list = '[1]'",
        "meta.good = 1",
    ],
)
def test_what_is_not_true_of_the_row(where: str) -> None:
    assert not chosen(where)


def test_what_is_unknown_does_not_hide_what_is_known() -> None:
    assert chosen("guidance > 3 or steps = 20")
    assert chosen("not (guidance > 3 and steps = 21)")


@pytest.mark.parametrize("value", [5, "5", 5.0])
def test_a_kept_value_is_the_same_whatever_its_file_took_it_for(value: object) -> None:
    """A CSV has texts where a Parquet file has numbers."""
    meta = {"id": value}
    assert chosen("meta.id = 5 and meta.id = '5' and meta.id < 10", meta=meta)
    assert not chosen("meta.id > 5", meta=meta)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("colour = 'red'", "names the column 'colour'; there are key, "),
        ("meta. = 1", "names the column 'meta.'"),
        ("worker_class = 'x'", "known only once a picture has been read"),
        ("steps = 'a'", "compares the column steps, which is of type int32, with 'a'"),
        ("status = 1", "compares the column status, which is of type string, with 1"),
        ("steps", "ends where"),
        ("steps =", "ends where"),
        ("steps = 1 and", "ends where"),
        ("(steps = 1", "ends where"),
        ("steps = 1)", "')' at character 10"),
        ("status = stored", "'stored' at character 10"),
        ("status = 'stored", '"\'" at character 10'),
        ("steps in ()", "')' at character 11"),
        ("status like 's%'", "'like' at character 8"),
        ("steps = 1; DROP TABLE images", "';' at character 10"),
        ("'stored' = status", "\"'stored'\" at character 1"),
        ("not " * (MAX_DEPTH + 1) + "steps = 1", f"more than {MAX_DEPTH} parentheses"),
        ("(" * 1000 + "steps = 1" + ")" * 900, f"more than {MAX_DEPTH} parentheses"),
        ("steps = 1 or " * 200 + "steps = 1", f"longer than {MAX_LENGTH} characters"),
    ],
)
def test_what_is_refused(where: str, reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DatasetPlan(where=where)
    (error,) = refused.value.errors()
    assert error["loc"] == ("where",)
    assert reason in error["msg"]


@pytest.mark.parametrize("where", ["not " * MAX_DEPTH + "steps = 20", "(" * MAX_DEPTH + "steps = 20" + ")" * MAX_DEPTH])
def test_as_many_parentheses_as_there_may_be(where: str) -> None:
    assert chosen(f"{where} and {where}")


def test_an_empty_condition_is_none() -> None:
    assert DatasetPlan(where=" ") == DatasetPlan()
