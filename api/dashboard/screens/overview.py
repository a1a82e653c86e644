"""The overview: the farm at a glance."""

from typing import Any

from fastapi import APIRouter

from api.backlog import read_backlog
from api.dashboard.screen import Look, screen
from api.dashboard.sessions import TheVisitor
from api.deps import TheFarm
from common.db import transaction

router = APIRouter()


@screen(router, "/", "overview.html")
def overview(farm: TheFarm, visitor: TheVisitor) -> Look:
    def look() -> dict[str, Any]:
        with transaction(farm.autocommit) as connection:
            return {"backlog": read_backlog(connection)}

    return look
