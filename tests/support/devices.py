"""The device of the conformance tests: the CPU, or the one that HUAFANG_TEST_DEVICE names (`cuda`)."""

import os

DEVICE = os.environ.get("HUAFANG_TEST_DEVICE", "cpu")
# How far other images in a call may move a byte. Random weights in half precision move more than trained ones.
LEVELS = 1 if DEVICE == "cpu" else 16
