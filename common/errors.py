"""One tree of errors, each a noun of the domain with a code, an HTTP status and whether trying again can help.

    Error
    ├── Invalid               400/422: the request cannot be carried out as it is
    │   ├── PromptTooLong / PictureRefused / RefusedByPolicy
    │   ├── EncodingUnsupported
    │   ├── UnknownModel
    │   └── IdempotencyMismatch
    ├── Unauthorized / NotFound / Conflict
    ├── Gone / PictureDamaged 410: it was there
    ├── Forbidden
    │   ├── LicenceNotAccepted / TierNotAllowed
    │   ├── OperatorNeeded                  the farm is not the tenant's
    │   └── TenantSuspended
    ├── LimitReached          429: the tenant takes more than its share for now
    ├── Unavailable           503: a service of the farm is down for now
    │   ├── NoRoom            507: a disk of the farm is full
    │   └── WrongFarm                       it answers, but it is another farm's
    └── RenderFailed          never HTTP: why an image failed, stored with it
        ├── ModelRefused                    a worker will not load this
        ├── LoraRefused                     no worker will
        │   └── LoraOutOfReach              this worker does not have it
        ├── OutOfMemory / NanImage / PromptRefused / SourceGone / WorkerLost / InternalError / Poison / Interrupted

The message of an error is one sentence for a person: what is wrong and, where it helps, what to do. Pure: no I/O, and
no knowledge of HTTP beyond the status number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from common import sentence
from common.sentences import Sentence

if TYPE_CHECKING:
    from pydantic import ValidationError

MOST_REASONS = 20  # in one sentence

# Plainer than pydantic's own sentences, by the type of its error.
PYDANTIC = {
    "extra_forbidden": "is not a field that is known here",
    "missing": "is missing",
    "string_unicode": "is not Unicode text: it has half of a surrogate pair",
    "finite_number": "must be a number, not NaN or infinity",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
}


@dataclass(frozen=True)
class FieldError:
    """One field of a request that is wrong: `field` is a dotted path such as `recipe.steps`."""

    field: str
    message: Sentence


class Error(Exception):
    """A failure that one sentence describes."""

    code = "error"
    status = 500
    retryable = False

    def __init__(self, message: Sentence, *, fields: tuple[FieldError, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class Invalid(Error):
    code = "invalid"
    status = 422

    @classmethod
    def field(cls, field: str, message: Sentence) -> "Invalid":
        return cls(sentence("field_wrong", field=field, reason=message), fields=(FieldError(field, message),))

    @classmethod
    def of(cls, wrong: Sequence[FieldError]) -> Self:
        """One sentence about all the fields that are wrong."""
        reasons = "; ".join(f"{error.field} {error.message}" for error in wrong[:MOST_REASONS])
        if len(wrong) > MOST_REASONS:
            reasons = f"{reasons}; …"
        return cls(sentence("fields_wrong", reasons=reasons), fields=tuple(wrong))


class PromptTooLong(Invalid):
    code = "prompt_too_long"


class RefusedByPolicy(Invalid):
    """A rule of the operator's refuses the prompt: its name, and the version of the policy."""

    code = "prompt_refused"
    rule = ""
    policy = ""


class PictureRefused(Invalid):
    """The upload is not a picture that the farm accepts."""

    code = "picture_refused"


class EncodingUnsupported(Invalid):
    """The body is compressed."""

    code = "encoding_unsupported"
    status = 415


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


class TierNotAllowed(Forbidden):
    """The tenant may not use this tier."""

    code = "tier_not_allowed"


class OperatorNeeded(Forbidden):
    """It concerns the farm, or another tenant: the key lacks the scope `operator`."""

    code = "operator_needed"


class TenantSuspended(Forbidden):
    """An operator has suspended the tenant of the key."""

    code = "tenant_suspended"


class NotFound(Error):
    code = "not_found"
    status = 404


class Gone(Error):
    """It was deleted."""

    code = "gone"
    status = 410


class Conflict(Error):
    code = "conflict"
    status = 409


class LimitReached(Error):
    """`limit`: its name, if it is one of the tenant's own; `used` and `allowed` are of that one. `retry_after_s`: when
    trying again may help; None: only once the tenant gives something up.
    """

    code = "limit_reached"
    status = 429
    retryable = True

    def __init__(
        self,
        message: Sentence,
        *,
        limit: str | None = None,
        used: int = 0,
        allowed: int = 0,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.used = used
        self.allowed = allowed
        self.retry_after_s = retry_after_s


class PictureDamaged(Error):
    """The bytes in the image store are not those that were stored: the picture is gone."""

    code = "picture_damaged"
    status = 410


class Unavailable(Error):
    code = "unavailable"
    status = 503
    retryable = True


class NoRoom(Unavailable):
    """A disk of the farm is full. Nothing of the request is left there, and it may succeed once there is room."""

    code = "no_room"
    status = 507


class WrongFarm(Unavailable):
    """The database, the bucket or the pepper is another farm's."""


class RenderFailed(Error):
    code = "render_failed"
    retryable = True


class ModelRefused(RenderFailed):
    """A worker will not serve this model: its files are missing, damaged, unsafe or out of reach."""

    code = "model_refused"


class OutOfMemory(RenderFailed):
    code = "out_of_memory"


class NanImage(RenderFailed):
    """The image has values that are not numbers, in fp32 too: another attempt would have them again."""

    code = "nan_image"
    retryable = False


class WorkerLost(RenderFailed):
    code = "worker_lost"


class PromptRefused(RenderFailed):
    """The prompt is longer than the token limit of its model."""

    code = "prompt_too_long"
    retryable = False


class SourceGone(RenderFailed):
    """An input image of the recipe is no longer in storage, or no longer the same."""

    code = "source_gone"
    retryable = False


class LoraRefused(RenderFailed):
    """No worker will load this LoRA: it is damaged, or not for this model."""

    code = "lora_refused"
    retryable = False


class LoraOutOfReach(LoraRefused):
    """A worker does not have the file of this LoRA, or another one in its place; the next worker may have it."""

    retryable = True


class InternalError(RenderFailed):
    """The worker failed for an unforeseen reason, which its log has under a reference."""

    code = "internal_error"


class Poison(RenderFailed):
    """The pipeline failed at this image alone, for an unforeseen reason, on a host that rendered its trial picture."""

    code = "poison"


class Interrupted(RenderFailed):
    """Raised inside the denoising loop to leave it: no image of the microbatch is wanted here any more."""

    code = "interrupted"


def wrong_fields(error: "ValidationError") -> list[FieldError]:
    """The errors that pydantic found, each with the path of its field."""
    return [FieldError(".".join(map(str, one["loc"])), pydantic_sentence(one)) for one in error.errors()]


def pydantic_sentence(error: Mapping[str, Any]) -> Sentence:
    """`Input should be greater than 0` → `should be greater than 0`. Its code and parameters are pydantic's."""
    text = str(error["msg"]).removeprefix("Input ").removeprefix("String ").removeprefix("Value error, ")
    return Sentence(PYDANTIC.get(error["type"], text), error["type"], error.get("ctx", {}))
