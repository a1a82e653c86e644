"""The API's documentation, also as a page. Its scripts are served from here: a farm may have no internet access."""

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from api.deps import require_public

router = APIRouter(include_in_schema=False, dependencies=[Depends(require_public("docs"))])

ASSETS = "/docs/assets"
OPENAPI = "/openapi.json"
assets = StaticFiles(packages=[("fastapi_offline", "static")])


@router.get(OPENAPI)
async def read_openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def show_documentation(request: Request) -> Response:
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}{OPENAPI}",
        title=request.app.title,
        swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
    )
