"""What the conformance tests paint on: a CPU, or what HUAFANG_TEST_DEVICE names (`cuda`)."""

import os

DEVICE = os.environ.get("HUAFANG_TEST_DEVICE", "cpu")
LEVELS = (
    1 if DEVICE == "cpu" else 16
)  # that company may move a byte by: random weights in half precision move more than trained ones
