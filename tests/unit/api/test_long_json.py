"""Long lists of texts in JSON: read as `json` reads them, without stopping other threads."""

import json
import threading
import time

import pytest

from api import long_json
from api.bodies import MAX_VALUES, check_values
from common.errors import Invalid

GOOD = [
    '{"prompts": ["红", "a\\n\\"b\\\\", "\\ud83d\\ude00"], "seed": 4, "matrix": {"guidance": [3, 7.5]}}',
    ' {\n"name" : "x" ,\t"prompts"\r: [ "a" , "b" ] } ',
    '{"prompts": []}',
    '{"prompts": null, "name": "\\"prompts\\": [\\"no\\"]"}',
    '{"defaults": {"prompts": ["inside"]}}',
    '{"prompts": ["红", {"prompt": "绿", "id": [1, {"深": null}]} , {}, "a"], "keep": "all"}',
    "[]",
    "null",
]
BAD = [
    "",
    '{"prompts": ["a",]}',
    '{"prompts": ["a" "b"]}',
    '{"prompts": ["a", "b"}',
    '{"prompts": ["a"',
    '{"prompts": ["a\n"]}',
    '{"prompts": ["a"]} x',
    '{"prompts": [,"a"]}',
    '{"prompts": [{"a": 1]}',
    '{"prompts": [{"a": 1} {}]}',
]


@pytest.mark.parametrize("text", GOOD)
def test_it_is_read_as_json_reads_it(text: str) -> None:
    assert long_json.read(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", BAD)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(ValueError):
        long_json.read(text.encode())


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"prompts": ["a", 7', "prompts.1"),
        ('{"prompts": [' + "{}," * 3_000_000 + "{}]}", "prompts.10000"),
        ('{"prompts": [{"x": "' + "x" * 1_000_000 + '"}]}', "prompts.0"),
        ('{"prompts": [' + ",".join(['{"x": [' + "1," * 10_000 + "1]}"] * 100) + "]}", "prompts.20"),
        ("[" + "{}," * 300_000 + "{}]", "body"),
        ('{"name": "' + "x" * 1_000_000 + '", "prompts": ["a"]}', "body"),
        ('{"defaults": {' + ",".join(f'"{n}":1' for n in range(2 * MAX_VALUES)) + '}, "prompts": ["a"]}', "body"),
    ],
)
def test_what_costs_more_than_texts_is_refused_at_once(text: str, field: str) -> None:
    body = text.encode()
    started = time.thread_time()
    with pytest.raises(Invalid) as refused:
        long_json.read(body)
    assert time.thread_time() - started < 0.5
    assert [error.field for error in refused.value.fields] == [field]


def test_a_million_texts_leave_other_threads_their_turns() -> None:
    body = ('{"prompts": [' + '"红",' * 1_000_000 + '"x"]}').encode()
    done = threading.Event()
    found = {}

    def read() -> None:
        found.update(long_json.read(body))
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    turns = 0
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert len(found["prompts"]) == 1_000_001
    assert turns > 10


def test_commas_in_texts_are_no_values() -> None:
    check_values(json.dumps({"prompt": 'a, \\" b, ' * 3_000}).encode())
    with pytest.raises(Invalid):
        check_values(b'{"seeds": [' + b"0," * MAX_VALUES + b"0]}")
