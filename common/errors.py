"""One tree of errors, each a noun of the domain with a code, an HTTP status and whether trying again can help.

    Error
    ├── Invalid               400/422: the request cannot be carried out as it is
    │   ├── PromptTooLong / PictureRefused
    │   ├── UnknownModel
    │   └── IdempotencyMismatch
    ├── Unauthorized / NotFound / Conflict
    ├── Forbidden
    │   └── LicenceNotAccepted
    ├── Unavailable           503: a service of the farm is away for now
    └── RenderFailed          never HTTP: why an image failed, stored with it
        ├── ModelRefused / LoraRefused      a worker will not load this
        ├── OutOfMemory / NanImage / PromptRefused / SourceGone / WorkerLost / Interrupted

The text of an error is one sentence for the person who reads it: what is wrong and, where it helps, what to do.
Pure: no I/O, and no knowledge of HTTP beyond the status number.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One field of a request that is wrong: `field` is a dotted path such as `recipe.steps`."""

    field: str
    message: str


class Error(Exception):
    """Something the farm can say in one sentence."""

    code = "error"
    status = 500
    retryable = False

    def __init__(self, message: str, *, fields: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class Invalid(Error):
    code = "invalid"
    status = 422

    @classmethod
    def field(cls, field: str, message: str) -> "Invalid":
        return cls(f"{field}: {message}", fields=(FieldError(field, message),))

    @classmethod
    def of(cls, wrong: Sequence[FieldError]) -> "Invalid":
        """One sentence about all the fields that are wrong."""
        return cls("; ".join(f"{e.field} {e.message}" for e in wrong) + ".", fields=tuple(wrong))


class PromptTooLong(Invalid):
    code = "prompt_too_long"


class PictureRefused(Invalid):
    """What was uploaded is no picture that the farm takes in."""

    code = "picture_refused"


class UnknownModel(Invalid):
    code = "unknown_model"


class IdempotencyMismatch(Invalid):
    code = "idempotency_mismatch"


class Unauthorized(Error):
    code = "unauthorized"
    status = 401


class Forbidden(Error):
    code = "forbidden"
    status = 403


class LicenceNotAccepted(Forbidden):
    """The tenant has not accepted the licence of the model yet, in the version that the catalogue has now."""

    code = "licence_not_accepted"


class NotFound(Error):
    code = "not_found"
    status = 404


class Conflict(Error):
    code = "conflict"
    status = 409


class Unavailable(Error):
    code = "unavailable"
    status = 503
    retryable = True


class RenderFailed(Error):
    code = "render_failed"
    retryable = True


class ModelRefused(RenderFailed):
    """A worker will not serve this model: its files are missing, damaged, unsafe or out of reach."""

    code = "model_refused"


class OutOfMemory(RenderFailed):
    code = "out_of_memory"


class NanImage(RenderFailed):
    """The model painted numbers that are none, in fp32 too: it would do so again."""

    code = "nan_image"
    retryable = False


class WorkerLost(RenderFailed):
    code = "worker_lost"


class PromptRefused(RenderFailed):
    """The prompt does not fit the tokenizer of the model that was to draw it."""

    code = "prompt_too_long"
    retryable = False


class SourceGone(RenderFailed):
    """A picture that the recipe starts from is not in storage any more, or not the one that it was."""

    code = "source_gone"
    retryable = False


class LoraRefused(RenderFailed):
    """A worker will not load this LoRA: its file is missing, damaged, or not for this model."""

    code = "lora_refused"


class Interrupted(RenderFailed):
    """Raised inside the denoising loop to leave it: no image of the microbatch is wanted here any more."""

    code = "interrupted"
