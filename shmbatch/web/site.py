"""The ASGI app of a web worker: which endpoint is at which path, and what errors become there."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.routing import Route

from .. import errors
from ..app.endpoints import METHODS
from ..errors import LoadError
from .disconnecting import cancelled_on_disconnect
from .health import add_health
from .lifespan import lifespan

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ..app.app import App
    from ..app.endpoints import Endpoint

# What a caller may try again, and after how many seconds: room comes soon, an executor later.
_TRY_AGAIN_S = {
    errors.RingFull: 1,
    errors.CallTimeout: 1,
    errors.DeadlineExceeded: 1,
    errors.ExecutorNotFound: 5,
    errors.ExecutorClosed: 5,
    errors.ExecutorGone: 5,
}


def site_of(app: App) -> FastAPI:
    """Return the ASGI app that has *app*'s endpoints, its documentation, and its health.

    Raises:
        LoadError: an endpoint is nothing that FastAPI, or ASGI, can serve.
    """
    mounted: dict[str, _Mounted] = {}
    site = _empty(app, mounted)
    add_health(site, app.name if app.definitions else None)
    site.router.route_class = _EndpointRoute
    for kind, after_s in _TRY_AGAIN_S.items():
        site.add_exception_handler(kind, _unavailable(after_s))
    site.add_exception_handler(errors.InputError, _unprocessable)
    for name, endpoint in app.endpoints.items():
        is_sole = len(app.endpoints) == 1
        try:
            if endpoint.method is None:
                mounted[name] = _Mounted(endpoint.function())
                _mount(site, name, mounted[name], is_sole)
            else:
                _route(site, name, endpoint, is_sole)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise LoadError(
                f"endpoint {name!r} cannot be served: {type(error).__name__}: {reason}"
            ) from error
    return site


def _empty(app: App, mounted: dict[str, _Mounted]) -> FastAPI:
    @asynccontextmanager
    async def lifespans(site: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for name, each in mounted.items():
                each.state = await stack.enter_async_context(lifespan(each.app, name))
            yield

    if any(endpoint.docs for endpoint in app.endpoints.values()):
        # The page's scripts are served from here: whoever looks may have no other network.
        return FastAPIOffline(redoc_url=None, title=app.name, lifespan=lifespans)
    return FastAPI(
        docs_url=None, redoc_url=None, openapi_url=None, title=app.name, lifespan=lifespans
    )


class _EndpointRoute(APIRoute):
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        function = inspect.unwrap(self.endpoint)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            await cancelled_on_disconnect(super().handle)(scope, receive, send)
        else:  # its thread could not be interrupted, would run on, and be counted no more
            await super().handle(scope, receive, send)


def _route(site: FastAPI, name: str, endpoint: Endpoint, is_sole: bool) -> None:
    assert endpoint.method is not None
    options: dict[str, Any] = {"methods": [endpoint.method], "name": name}
    site.add_api_route(f"/{name}", endpoint.function, include_in_schema=endpoint.docs, **options)
    if is_sole:
        site.add_api_route("/", endpoint.function, include_in_schema=False, **options)


class _Mounted:
    """An ASGI app that an endpoint has returned; its requests see what its startup has left."""

    def __init__(self, app: ASGIApp) -> None:
        if not callable(app):
            raise TypeError(f"it returned {app!r:.60}, which is no ASGI app")
        self.app = app
        self.state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = dict(self.state)
        await self.app(scope, receive, send)


def _mount(site: FastAPI, name: str, mounted: _Mounted, is_sole: bool) -> None:
    async def to_folder(request: Request) -> RedirectResponse:
        return RedirectResponse(request.url.replace(path=f"{request.url.path}/"))

    site.mount(f"/{name}", mounted)
    site.router.routes.append(Route(f"/{name}", to_folder, methods=METHODS))
    if is_sole:
        site.mount("", mounted)


def _unavailable(after_s: int) -> Any:
    async def answer(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(after_s)})

    return answer


async def _unprocessable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)
