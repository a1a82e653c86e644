"""The child process of `common.prompt_files.conversion.convert`: converts stdin, a file, to stdout, under limits.

What such a file unpacks to is unknown before: a page of 70 KB may become two gigabytes, two cells that are far apart a
hundred. Too large or broken a file ends this process, and not its parent. Exits with REFUSED, a Sentence on stderr, or
with FULL where the disk is.
"""

import errno
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import NoReturn

from common.disks import NO_ROOM
from common.errors import Invalid
from common.prompt_files import sentence
from common.sentences import Sentence

REFUSED, FULL = 3, 4  # exit statuses
MODULES = {
    "parquet": "from_parquet",
    "xlsx": "from_xlsx",
    "json": "from_json",
    ".gz": "from_compressed",
    ".zst": "from_compressed",
}


def main(kind: str, memory: int, seconds: int, size: int, codec: str) -> None:
    """Convert a file of this kind: a format, or a compression."""
    os.nice(10)
    try:
        module = importlib.import_module(f"common.prompt_files.conversion.{MODULES[kind]}")
    except ImportError:
        refuse(sentence("converter_missing"))
    limit(memory, seconds, size)
    try:
        module.convert(sys.stdin.buffer, sys.stdout.buffer, kind, codec)
        sys.stdout.flush()
    except MemoryError:
        refuse(sentence("file_takes_memory", most=memory))
    except Invalid as error:
        refuse(error.message)
    except OSError as error:
        if error.errno == errno.EFBIG:
            refuse(sentence("file_unpacks_too_large", most=size))
        if error.errno in NO_ROOM:
            os._exit(FULL)
        raise


def limit(memory: int, seconds: int, size: int) -> None:
    """Let this process use so many bytes more than now and so many seconds of a processor, and write so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # other systems do not enforce it
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def refuse(why: str) -> NoReturn:
    assert isinstance(why, Sentence)
    os.write(2, json.dumps({"text": why, "code": why.code, "params": why.params}).encode())
    os._exit(REFUSED)  # not the buffer of stdout: there may be no room for it


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
