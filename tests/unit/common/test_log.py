"""A record is one line of the log: what users send can neither forge a second one nor command a terminal."""

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
