"""A record is one line of the log: what users send can neither forge a second one nor command a terminal.

A log that finds no room ends no process.
"""

import subprocess
import sys

FORGED = "2026-11-29 12:00:00,000 INFO huafang api_started The API listens."
EVIL = f"红\n{FORGED}\r\x1b[2J\x9b\u202e\u2028\ud83d😀色"
ESCAPED = rf"红\n{FORGED}\r\x1b[2J\x9b\u202e\u2028\ud83d\U0001f600色"  # GBK has no emoji
WRITE = f"""
import logging
from common import log
log.set_up()
log.log_event("job_submitted", job={EVIL!r}, model="zh-v0")
logging.getLogger("uvicorn.error").warning("Invalid request: %s", {EVIL!r})
try:
    raise ValueError({EVIL!r})
except ValueError:
    log.log_event("request_failed", exc_info=True, path="/")
"""


def test_a_record_is_one_line_and_a_traceback_is_indented() -> None:
    environment = {"PYTHONIOENCODING": "gbk", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", WRITE], env=environment, capture_output=True, timeout=60, check=True)
    event, message, failure, *traceback = done.stderr.decode("gbk").removesuffix("\n").split("\n")
    assert event.endswith(f"job_submitted job='{ESCAPED}' model=zh-v0 A job was submitted.")
    assert message.endswith(f"WARNING uvicorn.error Invalid request: {ESCAPED}")
    assert failure.endswith("request_failed path=/ A request failed unexpectedly.")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert traceback[-2:] == [r"  ValueError: 红", f"  {ESCAPED.partition(chr(92) + 'n')[2]}"]
    assert [line for line in traceback if not line.startswith("  ")] == []


LOG_MUCH = """
from common import log
log.set_up()
for number in range(1000):
    log.log_event("job_submitted", job=number)
print("went on")
"""


def test_a_log_without_room_ends_no_process() -> None:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", LOG_MUCH],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, b"went on\n")
