from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

import shmbatch
from shmbatch.errors import ConfigError
from tests.programs import ran


@pytest.fixture
def app() -> shmbatch.App:
    return shmbatch.App("site")


def named(name: str) -> Callable[[], int]:
    def function() -> int:
        return 1

    function.__name__ = name
    return function


@shmbatch.batched(max_batch_size=2, wait_ms=0)
def batched(xs: list[int]) -> list[int]:
    return xs


def test_an_endpoint_remains_the_plain_function_that_it_is(app: shmbatch.App) -> None:
    async def add(x: int, y: int) -> int:
        return x + y

    def hello() -> int:
        return 1

    def pages() -> object:
        return None

    assert app.function()(shmbatch.fastapi_endpoint(method="post", docs=True)(add)) is add
    assert app.function()(shmbatch.web_endpoint()(hello)) is hello
    assert app.function()(shmbatch.asgi_app()(pages)) is pages
    described = {name: (each.method, each.docs) for name, each in app.endpoints.items()}
    assert described == {"add": ("POST", True), "hello": ("GET", False), "pages": (None, False)}
    assert app.definitions == {}


def test_defining_endpoints_imports_nothing_of_the_web() -> None:
    modules = ("fastapi", "starlette", "uvicorn", "fastapi_offline", "asyncio")
    code = f"""
import sys, shmbatch
def add(x: int) -> int: return x
shmbatch.fastapi_endpoint()(add), shmbatch.asgi_app()(lambda: None)
print([name for name in {modules} if name in sys.modules])
"""
    assert ran("-c", code, python=True).stdout == "[]\n"


def test_web_endpoint_is_fastapi_endpoint() -> None:
    assert shmbatch.web_endpoint is shmbatch.fastapi_endpoint


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"method": "FETCH"},
            "method is 'FETCH'; it must be one of GET, POST, PUT, PATCH, DELETE",
        ),
        ({"method": None}, "method is None; it must be one of"),
        ({"docs": 1}, "docs is 1; use True or False"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        shmbatch.fastapi_endpoint(**arguments)
    assert str(refusal.value).startswith(reason)


def test_positional_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes its arguments by keyword; write @shmbatch"):
        shmbatch.fastapi_endpoint(named("add"))
    with pytest.raises(ConfigError, match="takes no arguments; write @shmbatch"):
        shmbatch.asgi_app(named("add"))


class Policy:
    def act(self) -> int:
        return 1


@pytest.mark.parametrize("decorator", [shmbatch.fastapi_endpoint(), shmbatch.asgi_app()])
@pytest.mark.parametrize(
    ("decorated", "reason"),
    [
        (batched, "'batched' is batched, which runs in the executor; put @"),
        (Policy, "decorates class 'Policy'; it must be a function"),
        (
            Policy.act,
            "decorates a method of 'Policy'; an endpoint runs in a web worker, the class",
        ),
        (len, "decorates <built-in function len>; it must be a function"),
        (
            shmbatch.App("site").function()(batched),
            "decorates 'site.batched', a handle; put it on a function of its own",
        ),
    ],
    ids=["batched", "class", "method", "builtin", "handle"],
)
def test_what_is_no_plain_function_is_refused(
    decorator: Callable[[Any], Any], decorated: Any, reason: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        decorator(decorated)
    assert reason in str(refusal.value)


def test_an_asgi_app_comes_from_a_function_without_parameters() -> None:
    async def awaited() -> None: ...

    def takes(name: str) -> None: ...

    for function in (awaited, takes):
        assert inspect.isfunction(function)
        with pytest.raises(ConfigError, match="must be a function, written with def, that takes"):
            shmbatch.asgi_app()(function)


@pytest.mark.parametrize("name", ["docs", "livez", "readyz", "healthz"])
def test_the_names_of_our_own_pages_are_refused(app: shmbatch.App, name: str) -> None:
    endpoint = shmbatch.fastapi_endpoint()(named(name))
    with pytest.raises(ConfigError, match=f"endpoint '{name}' has the name of a page of"):
        app.function()(endpoint)


def test_a_name_is_taken_once(app: shmbatch.App) -> None:
    app.function()(shmbatch.fastapi_endpoint()(named("batched")))
    for again in (batched, shmbatch.fastapi_endpoint()(named("batched"))):
        with pytest.raises(ConfigError, match="has a function 'batched' already; rename one"):
            app.function()(again)


def test_an_endpoint_of_no_app_cannot_be_called() -> None:
    with pytest.raises(ConfigError, match="'add' is an endpoint but belongs to no app; put @app"):
        shmbatch.fastapi_endpoint()(named("add"))()


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    from shmbatch.app.extras import needed

    assert needed("web", "json") is __import__("json")
    with pytest.raises(ConfigError, match=r"^nothing is not installed; get it with `pip install"):
        needed("web", "nothing.at_all")
