"""Collects the tests that need an accelerator only with HUAFANG_TEST_DEVICE=cuda."""

from tests.support.devices import DEVICE

collect_ignore = ["test_accelerator.py"] if DEVICE == "cpu" else []
