"""The states of images, jobs, workers, batches and datasets, each with what changes it. Pure: no I/O.

The database has the same names as enums and defends them with CHECKs (`common.schema`). Every transition is one UPDATE
in `common.queue` or in the lifecycle of batches and datasets.
"""

from enum import StrEnum


class ImageState(StrEnum):
    QUEUED = "queued"  # waits in its lane, or is claimed ahead by a lease that has not started
    RUNNING = "running"  # a started lease renders it: published, released, failed or rescued
    STORED = "stored"  # its bytes are in storage under `key`
    FLAGGED = "flagged"  # the safety checker refused it; nothing is stored
    FAILED = "failed"  # its attempts are used up, or its error is not retryable
    CANCELLED = "cancelled"  # its job was cancelled before it was stored


class JobState(StrEnum):
    QUEUED = "queued"  # no image has started
    RUNNING = "running"  # an image has started; stays so when it goes back to the queue
    SUCCEEDED = "succeeded"  # every image is stored or flagged
    FAILED = "failed"  # an image failed; what was stored stays
    CANCELLED = "cancelled"  # cancelled by its tenant or the operator


class WorkerState(StrEnum):
    STARTING = "starting"  # registered, loads its first model
    READY = "ready"  # renders, or waits for work
    DRAINING = "draining"  # finishes what it holds and claims nothing more
    STOPPED = "stopped"  # it ended, or was silent for too long


class BatchState(StrEnum):
    """Postgres computes it from the row of a batch: the first of these that holds."""

    ENDED = "ended"  # every image has ended, or its prompts cannot be rendered
    PAUSED = "paused"  # nothing of it is claimed until it is resumed
    RUNNING = "running"  # all its jobs are there
    EXPANDING = "expanding"  # its prompts become jobs, which are rendered already
    CHECKING = "checking"  # its prompts are read for the first time


class DatasetState(StrEnum):
    """Postgres computes it from the row of a dataset: the first of these that holds."""

    FAILED = "failed"  # it cannot be written
    READY = "ready"  # all its files are there
    WRITING = "writing"  # a control worker writes it, shard by shard, up to where its batch is
    WAITING = "waiting"  # none of it is written yet


class Tier(StrEnum):
    """How urgent a job is, most urgent first: a higher tier's images are claimed before a lower one's."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BULK = "bulk"


class Via(StrEnum):
    """The way by which a caller acted."""

    API = "api"
    DASHBOARD = "dashboard"
    SHELL = "shell"  # of the farm itself: `huafang admin`


class Scope(StrEnum):
    """What an API key may do: `admin` everything within its tenant, `operator` what concerns the farm."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    BATCHES_WRITE = "batches:write"
    DATASETS_WRITE = "datasets:write"
    VIEWER = "viewer"
    ADMIN = "admin"
    OPERATOR = "operator"


TERMINAL_IMAGE = (ImageState.STORED, ImageState.FLAGGED, ImageState.FAILED, ImageState.CANCELLED)
TERMINAL_JOB = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
