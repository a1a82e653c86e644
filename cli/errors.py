"""What ends a command: a Failure with a sentence and an exit code, also for an answer of the farm. Knows no command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli import sentence

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).resolve().parent.parent
ERROR, USAGE, AUTH, NOT_FOUND, CONFLICT, PARTLY, TIMED_OUT, INTERRUPTED = 1, 2, 3, 4, 5, 6, 7, 130
OF_STATUS = {
    400: USAGE,
    401: AUTH,
    403: AUTH,
    404: NOT_FOUND,
    408: TIMED_OUT,
    409: CONFLICT,
    410: NOT_FOUND,
    413: USAGE,
    415: USAGE,
    422: USAGE,
    504: TIMED_OUT,
}

UNAVAILABLE = (429, 502, 503, 504)  # a proxy answers 502 while the API restarts


class Failure(Exception):
    """Ends a command: a sentence for stderr, and the exit code."""

    def __init__(self, message: str, exit_code: int = ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class FarmUnavailable(Failure):
    """The farm does not answer, or answers that it cannot for now: a retry may succeed."""


class LinkExpired(Failure):
    """A presigned link is no longer valid, or its object is gone."""


class Deleted(Failure):
    """It was deleted; `tombstone` is what the farm says of it."""

    def __init__(self, message: str, tombstone: dict[str, Any]) -> None:
        super().__init__(message, NOT_FOUND)
        self.tombstone = tombstone


def exit_code_of(status: int) -> int:
    """The exit code for an HTTP status."""
    return OF_STATUS.get(status, ERROR)


def program_name() -> str:
    """How this user starts the command line from the current folder, for hints that can be pasted."""
    script = ROOT / "huafang"
    if shutil.which("huafang") or not script.is_file():
        return "huafang"
    return "./huafang" if Path.cwd() == ROOT else str(script)


def failure_of(answer: httpx.Response) -> Failure:
    """The Failure for an error response of the farm."""
    try:
        problem = answer.json()
        message = problem.get("detail") or problem["title"]
        if problem.get("tombstone"):
            return Deleted(message, problem["tombstone"])
    except (ValueError, KeyError, AttributeError):
        message = sentence("farm_error", status=answer.status_code, phrase=answer.reason_phrase)
    if answer.status_code == 401:
        message = sentence("key_needed", message=message)
    kind = FarmUnavailable if answer.status_code in UNAVAILABLE else Failure
    return kind(message, exit_code_of(answer.status_code))
