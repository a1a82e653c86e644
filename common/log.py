"""Logs. Code names an event and its fields; this module has the level and the sentence of each event.

`log_event("job_submitted", job=…)` needs `job_submitted` below; a test compares the two. No text forges a line: it is
escaped, and a traceback is indented. What finds no room on a full disk is lost, and its process goes on.
"""

import io
import logging
import re
import sys
from typing import Any

from common.sentences import printable

logger = logging.getLogger("huafang")

EVENTS: dict[str, tuple[int, str]] = {
    # the API
    "api_started": (logging.INFO, "The API listens."),
    "job_submitted": (logging.INFO, "A job was submitted."),
    "prompt_refused": (logging.INFO, "A prompt was refused by a rule of the operator's policy."),
    "batch_submitted": (logging.INFO, "A batch was submitted."),
    "dataset_submitted": (logging.INFO, "A dataset was asked for."),
    "batch_changed": (logging.INFO, "A batch was paused, resumed or cancelled."),
    "job_cancelled": (logging.INFO, "A job was cancelled."),
    "job_changed": (logging.INFO, "The tier of a job was changed."),
    "jobs_changed": (logging.INFO, "All jobs that match a filter were cancelled, retried or moved to another tier."),
    "deleted": (logging.INFO, "A job, a batch, an image, a dataset or an upload was deleted."),
    "authentication_failed": (logging.WARNING, "A request had no valid key, session or link."),
    "request_failed": (logging.ERROR, "A request failed unexpectedly."),
    "request_unavailable": (logging.WARNING, "A request was refused for now: a service is away, or a disk full."),
    # services
    "redis_away": (logging.WARNING, "Redis does not answer; the sweep will send again what was not sent."),
    "redis_back": (logging.INFO, "Redis is back."),
    "database_away": (logging.WARNING, "Postgres does not answer; trying again."),
    "database_back": (logging.INFO, "Postgres is back."),
    "storage_away": (logging.WARNING, "The image store does not answer; pictures wait in memory until it is back."),
    "storage_back": (logging.INFO, "The image store is back."),
    "wrong_farm": (logging.ERROR, "Database, bucket and pepper are not of one farm; nothing is done until they are."),
    # render workers
    "worker_started": (logging.INFO, "A render worker started."),
    "gpu_unused": (logging.WARNING, "This worker renders on the CPU of a machine that has a GPU."),
    "device_unusable": (logging.CRITICAL, "This worker cannot render on its device and does not start."),
    "device_error": (logging.ERROR, "The device of this worker reports an error."),
    "worker_process_ended": (logging.ERROR, "The process of a device ended; it is started again."),
    "worker_draining": (logging.INFO, "This worker finishes what it holds and claims nothing more."),
    "clock_skew": (logging.WARNING, "This machine's clock differs from the database's; set it right."),
    "process_aborts": (logging.CRITICAL, "This process cannot go on and exits; its supervisor starts a new one."),
    "worker_stopped": (logging.INFO, "This worker has stopped."),
    "trial_failed": (logging.ERROR, "The trial picture of a model failed."),
    "worker_quarantined": (logging.ERROR, "This worker claims nothing more until its trial pictures are good."),
    "worker_recovered": (logging.INFO, "The trial pictures of this worker are good; its quarantine is over."),
    "worker_resumed": (logging.INFO, "The quarantine of this worker was ended by an operator, or its next process."),
    "nothing_to_serve": (logging.ERROR, "This worker refuses every model that it was to serve; it renders nothing."),
    "model_imports": (logging.INFO, "A model is being imported on this host, for all of its workers."),
    "model_loaded": (logging.INFO, "A model was loaded into memory."),
    "model_load_failed": (logging.ERROR, "A model could not be loaded because of an unexpected error."),
    "model_refused": (logging.ERROR, "This worker does not serve a model."),
    "microbatch_claimed": (logging.DEBUG, "A microbatch was claimed."),
    "microbatch_published": (logging.INFO, "A microbatch was published."),
    "microbatch_released": (logging.INFO, "A microbatch was released."),
    "images_discarded": (logging.INFO, "Images were deleted: their job was cancelled, or their lease was lost."),
    "batch_size_reduced": (logging.WARNING, "Memory ran out; a call renders fewer images for a while."),
    "image_failed": (logging.WARNING, "An image failed."),
    "image_unchecked": (logging.ERROR, "A safety checker gave NaN for an image, which is flagged; verify its model."),
    "render_failed": (logging.ERROR, "A pipeline failed for an unforeseen reason."),
    "encode_failed": (logging.ERROR, "An image could not be encoded for an unforeseen reason."),
    "store_failed": (logging.ERROR, "An image could not be stored for an unforeseen reason; it is tried again."),
    "store_watch_failed": (
        logging.ERROR,
        "It could not be found out whether this worker can store, for an unforeseen reason; it is tried again.",
    ),
    "microbatch_failed": (logging.ERROR, "A microbatch failed for an unforeseen reason; it counts as an attempt."),
    "discard_failed": (logging.ERROR, "Images could not be deleted for an unforeseen reason; the sweep does so later."),
    "input_failed": (logging.ERROR, "An input image could not be used for an unforeseen reason."),
    "render_loop_failed": (logging.ERROR, "The render loop failed for an unforeseen reason; it goes on."),
    "charge_failed": (logging.ERROR, "Tenants could not be charged for what was claimed; their shares miss a second."),
    "heartbeat_failed": (logging.ERROR, "A heartbeat failed for an unforeseen reason; the next one follows."),
    # control workers
    "control_started": (logging.INFO, "A control worker started."),
    "leases_rescued": (logging.WARNING, "Leases expired; their images are queued again."),
    "jobs_expired": (logging.INFO, "Jobs failed because their deadline has passed."),
    "leftovers_deleted": (logging.INFO, "Objects that expired leases may have stored were deleted."),
    "rows_deleted": (logging.INFO, "Rows of what was deleted, or is kept no longer, were deleted."),
    "bytes_deleted": (logging.INFO, "Bytes of what was deleted, or is kept no longer, were deleted."),
    "bytes_not_deleted": (logging.WARNING, "The image store did not delete some objects; they are tried again."),
    "tenant_emptied": (logging.INFO, "Rows of an erased tenant were deleted."),
    "tenants_erased": (
        logging.INFO,
        "Nothing is left of erased tenants but what is kept; the bucket was listed.",
    ),
    "uploads_deleted": (logging.INFO, "Unused uploads were deleted."),
    "rows_pruned": (logging.INFO, "Rows that nothing needs any more were deleted."),
    "workers_pruned": (logging.WARNING, "Workers have stopped reporting."),
    "models_woken": (logging.INFO, "Images were waiting although workers were idle; the workers were woken."),
    "batch_expanded": (logging.INFO, "Jobs of a batch were inserted."),
    "batch_stopped": (logging.WARNING, "A batch was paused by its stop rule: too many of its images failed."),
    "batch_refused": (logging.WARNING, "A batch was refused: its file has prompts that cannot be rendered."),
    "advance_failed": (logging.ERROR, "The work on a batch failed for an unforeseen reason; it is tried again later."),
    "batch_given_up": (
        logging.ERROR,
        "The work on a batch failed too often for unforeseen reasons: its owner sees an error, its jobs end.",
    ),
    "batch_lost_workers": (
        logging.ERROR,
        "Control workers died one after the other while they worked on a batch: it is given up.",
    ),
    "dataset_shard_written": (logging.INFO, "A shard of a dataset was written."),
    "dataset_ready": (logging.INFO, "A dataset is ready: all its files are written."),
    "dataset_failed": (logging.WARNING, "A dataset cannot be written."),
    "export_failed": (
        logging.ERROR,
        "A dataset could not be written for an unforeseen reason; it is tried again later.",
    ),
    "dataset_given_up": (logging.ERROR, "A dataset failed too often for unforeseen reasons: it has ended."),
    "dataset_lost_workers": (
        logging.ERROR,
        "Control workers died one after the other while they wrote a dataset: it is given up.",
    ),
    "picture_damaged": (logging.ERROR, "An image file in the image store is not the one that was stored there."),
    "picture_lost": (logging.ERROR, "An image file is missing or damaged; its dataset counts it as failed."),
    "sweep_failed": (logging.ERROR, "A step of the sweep failed for an unforeseen reason; it is tried again later."),
}


ROW_OF_POSTGRES = re.compile("^(DETAIL: ).*", re.MULTILINE)  # the row that a constraint refuses


class LineFormatter(logging.Formatter):
    """One line for each record, whatever is in its message; below it the traceback, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _indent(ROW_OF_POSTGRES.sub(r"\1 (left out: it may have a prompt)", super().formatException(ei)))

    def formatStack(self, stack_info: str) -> str:
        return _indent(stack_info)


class LossyFile(io.FileIO):
    """A file whose writes never fail: what finds no room is lost, and a line says so as soon as there is room."""

    def __init__(self, file: str | int, mode: str = "ab") -> None:
        super().__init__(file, mode, closefd=isinstance(file, str))
        self._lost = 0

    def write(self, data: Any) -> int:
        left = memoryview(data)
        try:
            if self._lost:
                super().write(f"\n… {self._lost} bytes of this log found no room …\n".encode())
                self._lost = 0
            while left:
                written: int | None = super().write(left)
                if written is None:  # a pipe that is full, of a parent that does not wait for it
                    raise BlockingIOError
                left = left[written:]
        except OSError:
            self._lost += len(left)
        return len(data)


def lose_without_room() -> None:
    """Make stderr a LossyFile: else what its buffer holds at the end of the process gives it another exit code."""
    if sys.stderr is None:  # closed by the parent
        return
    file = LossyFile(sys.stderr.fileno())
    sys.stderr = io.TextIOWrapper(file, sys.stderr.encoding, "backslashreplace", write_through=True)


def set_up(level: str = "INFO") -> None:
    """Write log lines to stderr. For the start of a process."""
    lose_without_room()
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for noisy in ("alembic", "botocore", "boto3", "urllib3", "httpx", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_event(event: str, *, exc_info: bool | Exception = False, **fields: Any) -> None:
    """Log an event: its id, its fields as `key=value`, and its sentence."""
    level, sentence = EVENTS[event]
    if logger.isEnabledFor(level):
        shown = " ".join(f"{key}={_quote(value)}" for key, value in fields.items() if value is not None)
        logger.log(level, "%s %s %s", event, shown, sentence, exc_info=exc_info)


def _indent(text: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def _quote(value: Any) -> str:
    shown = f"{value:.3f}" if isinstance(value, float) else str(value)
    return repr(shown) if any(c.isspace() or not c.isprintable() for c in shown) else shown
