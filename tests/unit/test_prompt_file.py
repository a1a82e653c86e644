"""Files of prompts, line by line."""

from worker.prompt_file import MOST_BYTES, lines, some

LONG = b"x" * 900_000 + b"\n"


def test_of_large_lines_few_are_in_memory_at_once_and_none_is_lost() -> None:
    found = lines(LONG for _ in range(40))
    chunks = list(iter(lambda: some(found, 5000), []))
    assert [line.number for chunk in chunks for line in chunk] == list(range(1, 41))
    assert all(sum(len(line.content) for line in chunk) < MOST_BYTES + len(LONG) for chunk in chunks)


def test_of_small_lines_no_more_are_taken_than_asked_for() -> None:
    found = lines([b"a\nb\n\nc\nd\n"])
    assert [line.content for line in some(found, 3)] == [b"a", b"b", b"c"]
    assert [line.content for line in some(found, 3)] == [b"d"]
