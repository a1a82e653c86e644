"""What can only be seen on an accelerator is collected where the tests have one: HUAFANG_TEST_DEVICE=cuda."""

from tests.support.devices import DEVICE

collect_ignore = ["test_accelerator.py"] if DEVICE == "cpu" else []
