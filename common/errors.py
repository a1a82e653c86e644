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
    └── RenderFailed          never HTTP: why an image failed, stored in its row
        ├── ModelRefused / LoraRefused      a worker will not load this
        ├── OutOfMemory / NanImage / PromptRefused / SourceGone / WorkerLost / Interrupted

The text of an error is one sentence: what is wrong and, where it helps, what to do. Here are also the sentences of
`common`'s own modules, and those about fields that pydantic refuses. Pure: no I/O; of HTTP only the status number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.sentences import Sentence, Sentences

if TYPE_CHECKING:
    from pydantic import ValidationError

sentence = Sentences(
    {
        "field_wrong": "{field}: {message}",
        "fields_wrong": "{fields}.",
        # Fields that pydantic refuses; they follow the name of the field
        "field_unknown": "is not a known field",
        "field_missing": "is missing",
        "not_unicode": "is not Unicode text: it has half of a surrogate pair",
        "not_finite": "must be a number, not NaN or infinity",
        "not_integer": "must be a whole number",
        "not_number": "must be a number",
        "field_refused": "{reason}",
        # Postgres
        "database_away": "The database is away or too busy; try again shortly.",
        "database_cut": "The database cut the connection; try again shortly.",
        "database_empty": "The database has no tables yet: run `huafang admin migrate`.",
        "revision_old": "The database is at revision {revision}, an old one: run `huafang admin migrate`.",
        "revision_unknown": (
            "The database is at revision {revision}, which this version does not know: run the version that made it, "
            "or make a new database (for a local farm: stop it and delete its folder)."
        ),
        "database_url_wrong": "HUAFANG_DATABASE_URL must look like postgresql://user:password@host:port/database.",
        "database_refuses": "The database refuses: {reason}.",
        # The first key
        "pepper_missing": "HUAFANG_KEY_PEPPER is not set: give the farm a long random secret, and never change it.",
        "admin_key_exists": "The farm has an admin key; if it is lost, make another with `--another`.",
        # The image store
        "object_missing": "The image store has nothing under this key.",
        "offset_too_large": "There is nothing from this offset on.",
        "store_refuses": "The image store refuses these credentials; check HUAFANG_S3_ACCESS_KEY.",
        "store_failed": "The image store answered with an error ({status}).",
        "store_away": "The image store is away; try again shortly.",
    }
)


@dataclass(frozen=True)
class FieldError:
    """A wrong field of a request: a dotted path such as `recipe.steps`, and what follows it in a sentence."""

    field: str
    message: str


class Error(Exception):
    """What went wrong, in one sentence."""

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
    def field(cls, field: str, message: str) -> Invalid:
        return cls(sentence("field_wrong", field=field, message=message), fields=(FieldError(field, message),))

    @classmethod
    def of(cls, wrong: Sequence[FieldError]) -> Invalid:
        """One sentence about all wrong fields."""
        fields = "; ".join(f"{error.field} {error.message}" for error in wrong)
        return cls(sentence("fields_wrong", fields=fields), fields=tuple(wrong))


def wrong_fields(error: ValidationError) -> list[FieldError]:
    """The fields that pydantic refuses."""
    return [FieldError(".".join(map(str, one["loc"])), field_message(one)) for one in error.errors()]


def field_message(error: Mapping[str, Any]) -> Sentence:
    """What is wrong with a field, of one of pydantic's errors: `Input should be …` → `should be …`."""
    if (message := FIELD_MESSAGES.get(error["type"])) is not None:
        return message
    return sentence("field_refused", reason=str(error["msg"]).removeprefix("Input ").removeprefix("Value error, "))


FIELD_MESSAGES = {  # by pydantic's type of an error, where its own message is hard to read
    "extra_forbidden": sentence("field_unknown"),
    "missing": sentence("field_missing"),
    "string_unicode": sentence("not_unicode"),
    "finite_number": sentence("not_finite"),
    "int_type": sentence("not_integer"),
    "float_type": sentence("not_number"),
}


class PromptTooLong(Invalid):
    code = "prompt_too_long"


class PictureRefused(Invalid):
    """An uploaded file is not a picture that the farm accepts."""

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
    """The tenant has not accepted the licence of the model, in the version of the catalogue."""

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
    """A worker refuses this model: its files are missing, damaged, unsafe or cannot be downloaded."""

    code = "model_refused"


class OutOfMemory(RenderFailed):
    code = "out_of_memory"


class NanImage(RenderFailed):
    """The model rendered NaN, in fp32 too; a further attempt would give the same."""

    code = "nan_image"
    retryable = False


class WorkerLost(RenderFailed):
    code = "worker_lost"


class PromptRefused(RenderFailed):
    """The prompt has more tokens than the model reads."""

    code = "prompt_too_long"
    retryable = False


class SourceGone(RenderFailed):
    """A picture that the recipe starts from is no longer in storage, or has changed."""

    code = "source_gone"
    retryable = False


class LoraRefused(RenderFailed):
    """A worker refuses this LoRA: its file is missing, damaged, or not for this model."""

    code = "lora_refused"


class Interrupted(RenderFailed):
    """Raised inside the denoising loop to leave it: no image of the microbatch is wanted here any more."""

    code = "interrupted"
