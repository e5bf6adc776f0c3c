from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI

import shmbatch
from shmbatch import errors
from shmbatch.web import health
from shmbatch.web.admitting import Admission
from shmbatch.web.disconnecting import cancelled_on_disconnect
from shmbatch.web.lifespan import lifespan
from shmbatch.web.site import site_of
from tests.processes import PATIENCE_S
from tests.web.asking import Exchange


def ask(app: Any, method: str, path: str, body: Any = None) -> Exchange:
    return asyncio.run(Exchange(app, method, path, body).run())


def made(*endpoints: Any) -> Any:
    """A site of an app with these endpoints."""
    app = shmbatch.App("site")
    for endpoint in endpoints:
        app.function()(endpoint)
    return site_of(app)


def failing(name: str, error: Exception) -> Any:
    async def fail() -> None:
        raise error

    fail.__name__ = name
    return shmbatch.fastapi_endpoint()(fail)


@shmbatch.fastapi_endpoint(method="POST", docs=True)
async def add(body: dict[str, int]) -> dict[str, int]:
    return {"result": body["x"] + body["y"]}


@shmbatch.fastapi_endpoint()
def hello(name: str = "you") -> str:
    return f"hello {name}"


@shmbatch.asgi_app()
def pages() -> Any:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            await send({"type": "http.response.body", "body": f'"page {path}"'.encode()})

    return page


def test_a_sole_endpoint_is_at_its_name_and_at_the_root() -> None:
    site = made(add)
    for path in ("/add", "/"):
        assert ask(site, "POST", path, {"x": 1, "y": 300}).json == {"result": 301}
    assert ask(site, "GET", "/add").status == 405


def test_one_of_several_is_at_its_name_alone() -> None:
    site = made(add, hello, pages)
    assert ask(site, "GET", "/hello?name=me").json == "hello me"
    assert ask(site, "POST", "/add", {"x": 1, "y": 2}).json == {"result": 3}
    assert ask(site, "GET", "/pages/one").json == "page /one"
    moved = ask(site, "GET", "/pages")
    assert (moved.status, moved.headers["location"]) == (307, "http://here/pages/")
    assert ask(site, "GET", "/").status == 404


def test_a_sole_asgi_app_has_all_paths_but_ours() -> None:
    site = made(pages)
    assert ask(site, "GET", "/pages/one").json == "page /one"
    assert ask(site, "GET", "/any/where").json == "page /any/where"
    assert ask(site, "GET", "/livez").json == {"status": "alive"}
    assert ask(site, "GET", "/readyz").json == {"status": "ready"}, "it needs no executor"


def test_the_documentation_lists_those_that_want_it() -> None:
    described = ask(made(add, hello), "GET", "/openapi.json").json
    assert {path: list(methods) for path, methods in described["paths"].items()} == {
        "/add": ["post"]
    }
    page = ask(made(add, hello), "GET", "/docs")
    scripts = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert len(scripts) == 3
    for script in scripts:
        assert ask(made(add), "GET", script).status == 200, "it is loaded from here"
    without = made(hello)
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert ask(without, "GET", path).status == 404
    assert ask(made(add), "GET", "/redoc").status == 404


def test_endpoints_that_keep_all_threads_busy_do_not_make_a_site_unready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "statistics", lambda app, timeout: {"state": "serving"})
    site, free = FastAPI(), threading.Event()
    health.add_health(site, "sums")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, free.wait)
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert (await Exchange(site, path="/readyz").run()).status == 200
        finally:
            free.set()
            await busy

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (errors.RingFull("full"), 503, "1"),
        (errors.CallTimeout("late"), 503, "1"),
        (errors.DeadlineExceeded("late"), 503, "1"),
        (errors.ExecutorNotFound("nobody"), 503, "5"),
        (errors.ExecutorClosed("closed"), 503, "5"),
        (errors.ExecutorGone("gone"), 503, "5"),
        (errors.InputTypeError("a str"), 422, None),
        (errors.InputValueError("too long"), 422, None),
    ],
)
def test_an_error_becomes_an_answer(error: Exception, status: int, after: str | None) -> None:
    answer = ask(made(failing("fail", error), hello), "GET", "/fail")
    assert (answer.status, answer.headers.get("retry-after")) == (status, after)
    assert answer.json == {"detail": str(error)}


def test_an_endpoint_that_fastapi_cannot_serve_is_refused_in_one_line() -> None:
    def odd(body: object.__class__.__subclasses__) -> None: ...  # type: ignore

    with pytest.raises(errors.LoadError) as refusal:
        made(shmbatch.fastapi_endpoint()(odd))
    assert str(refusal.value).startswith("endpoint 'odd' cannot be served: ")
    assert "\n" not in str(refusal.value)


def test_what_is_no_asgi_app_is_refused() -> None:
    def nothing() -> None:
        return None

    def raises() -> None:
        raise RuntimeError("not\ntoday")

    with pytest.raises(errors.LoadError, match="it returned None, which is no ASGI app"):
        made(shmbatch.asgi_app()(nothing))
    with pytest.raises(
        errors.LoadError, match="'raises' cannot be served: RuntimeError: not today"
    ):
        made(shmbatch.asgi_app()(raises))


# ---- startup and shutdown of what is mounted ---------------------------------------------


def living(said: list[str], *, fails: str | None = None) -> Callable[..., Any]:
    """An ASGI app with a lifespan, which notes what it is told, and answers as often as asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            body = f'"{scope["state"].get("model")}"'.encode()
            await send({"type": "http.response.body", "body": body})
            return
        while True:
            what = (await receive())["type"]
            said.append(what)
            outcome = "failed" if what == fails else "complete"
            scope["state"]["model"] = "loaded"
            await send({"type": f"{what}.{outcome}", "message": "Traceback\nValueError: no"})
            if what == "lifespan.shutdown":
                return

    return app


def test_a_mounted_app_starts_up_and_shuts_down_with_the_site() -> None:
    said: list[str] = []

    def model() -> Any:
        return living(said)

    async def main() -> str:
        site = made(shmbatch.asgi_app()(model))
        async with site.router.lifespan_context(site):
            assert said == ["lifespan.startup"]
            return str((await Exchange(site, path="/").run()).json)

    assert asyncio.run(main()) == "loaded"
    assert said == ["lifespan.startup", "lifespan.shutdown"]


@pytest.mark.parametrize("what", ["startup", "shutdown"])
def test_a_startup_or_shutdown_that_fails_says_so(what: str) -> None:
    async def main() -> None:
        async with lifespan(living([], fails=f"lifespan.{what}"), "model"):
            assert what == "shutdown"

    reason = f"the {what} of the ASGI app of endpoint 'model' failed: ValueError: no"
    with pytest.raises(errors.LoadError, match=reason):
        asyncio.run(main())


def test_a_mounted_app_needs_no_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def main() -> bool:
        async with lifespan(app, "plain"):
            return True

    assert asyncio.run(main())


# ---- how many at a time, and for how long ------------------------------------------------


def test_requests_are_refused_above_the_limit_and_taken_again_below() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/wait":
                await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1"})

        admission = Admission(app, 2)
        waiting = [Exchange(admission, path="/wait") for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            for each in waiting:
                group.create_task(each.run())
            await asyncio.sleep(0)
            refused = await Exchange(admission).run()
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            for path in ("/livez", "/readyz", "/healthz"):
                assert (await Exchange(admission, path=path).run()).status == 200
            go.set()
        assert [each.status for each in waiting] == [200, 200]
        assert (await Exchange(admission).run()).status == 200

    asyncio.run(main())


def test_a_draining_site_closes_each_connection_after_its_answer() -> None:
    admission = Admission(made(hello), 2)
    assert "connection" not in ask(admission, "GET", "/hello").headers
    admission.draining = True
    assert ask(admission, "GET", "/hello").headers["connection"] == "close"
    assert ask(admission, "GET", "/livez").headers["connection"] == "close"


# ---- clients that go ---------------------------------------------------------------------


class Endless:
    """An app that reads its request, and then waits for ever."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        try:
            self.waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


def test_a_client_that_goes_cancels_the_app_and_nothing_else() -> None:
    async def main() -> None:
        app = Endless()
        exchange = Exchange(cancelled_on_disconnect(app))
        task = asyncio.create_task(exchange.run())
        await app.waits.wait()
        exchange.gone.set()
        await task  # ends well: the cancellation stays inside
        assert app.was_cancelled
        assert task.cancelling() == 0

    asyncio.run(main())


def test_an_app_that_somebody_else_cancels_is_cancelled() -> None:
    async def main() -> None:
        for goes in (False, True):
            app = Endless()
            exchange = Exchange(cancelled_on_disconnect(app))
            task = asyncio.create_task(exchange.run())
            await app.waits.wait()
            if goes:
                exchange.gone.set()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())


def test_what_an_app_does_after_its_answer_is_not_cancelled() -> None:
    async def main() -> None:
        done: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            assert (await receive())["type"] == "http.request"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"1"})
            exchange.gone.set()
            for _ in range(10):
                await asyncio.sleep(0)
            done.extend([(await receive())["type"] for _ in range(2)])

        exchange = Exchange(cancelled_on_disconnect(app))
        await exchange.run()
        assert done == ["http.disconnect"] * 2, "and it may ask as often as it likes"

    asyncio.run(main())


def test_an_app_may_catch_that_its_client_has_gone() -> None:
    async def main() -> None:
        app = Endless()

        async def catching(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                assert (await receive())["type"] == "http.disconnect"

        exchange = Exchange(cancelled_on_disconnect(catching))
        task = asyncio.create_task(exchange.run())
        await app.waits.wait()
        exchange.gone.set()
        await task
        assert task.cancelling() == 0

    asyncio.run(main())
