"""`python -m embedded.tolerant_supervisord`: supervisord, on a disk that may be full.

Its own logs end it there, and it gives a program up after so many starts in vain. Here a write that finds no room is
lost, whether of its log or of a program's, and a program is started again for ever. Its pipes are read all the same, so
no program ever waits for its log.
"""

import os
import sys
from contextlib import suppress
from typing import Any

from supervisor import loggers, process, supervisord

from common.log import LossyFile, lose_without_room

LONGEST_PAUSE_S = 15  # between two starts; supervisord adds a second to each pause


class LossyLog(loggers.RotatingFileHandler):
    """A rotated log. Where it cannot be opened yet, the next line tries again."""

    stream: LossyFile | None = None

    def __init__(self, filename: str, mode: str, maxBytes: int, backupCount: int) -> None:
        loggers.Handler.__init__(self)
        self.baseFilename, self.mode, self.maxBytes, self.backupCount = filename, mode, maxBytes, backupCount
        self.reopen()

    def reopen(self) -> None:
        self.close()
        try:
            self.stream, self.closed = LossyFile(self.baseFilename), False
        except OSError:
            self.stream, self.closed = None, True

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream, self.closed = None, True

    def emit(self, record: Any) -> None:
        if self.stream is None:
            self.reopen()
        if self.stream is not None:
            loggers.Handler.emit(self, record)
            self.doRollover()

    def doRollover(self) -> None:
        if self.stream is None or self.stream.tell() < self.maxBytes:
            return
        self.close()
        names = [self.baseFilename, *(f"{self.baseFilename}.{n}" for n in range(1, self.backupCount + 1))]
        with suppress(OSError):
            for older, newer in reversed(list(zip(names[1:], names, strict=False))):
                if os.path.exists(newer):
                    os.replace(newer, older)
        self.reopen()


class PatientProcess(process.Subprocess):
    backoff: int

    def change_state(self, new_state: Any, expected: bool = True) -> Any:
        """The pause before the next start, and the count after which it would be given up, stop growing."""
        self.backoff = min(self.backoff, LONGEST_PAUSE_S - 1)
        return super().change_state(new_state, expected)


def main() -> None:
    loggers.RotatingFileHandler = LossyLog
    process.Subprocess = PatientProcess
    lose_without_room()
    sys.stdout = sys.stderr
    supervisord.main()


if __name__ == "__main__":
    main()
