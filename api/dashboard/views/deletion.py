"""The buttons that delete a job, a batch, an image or a dataset. The page asks first; the API's rules apply."""

from collections.abc import Callable
from typing import Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response

from api.dashboard.rendering import render_notice
from api.dashboard.sessions import CurrentActor
from api.deps import AppState, State
from api.services import deletion
from common.accounts.keys import Caller

router = APIRouter()

DELETE: dict[str, Callable[[AppState, Caller, UUID], None]] = {
    "jobs": deletion.delete_job,
    "batches": deletion.delete_batch,
    "images": deletion.delete_image,
    "datasets": deletion.delete_dataset,
}


@router.post("/{noun}/{subject}/delete")
def delete(
    noun: Literal["jobs", "batches", "images", "datasets"],
    subject: UUID,
    actor: CurrentActor,
    state: State,
    request: Request,
) -> Response:
    DELETE[noun](state, actor.caller, subject)
    return render_notice(request, "deleted_notice.html", noun=noun)
