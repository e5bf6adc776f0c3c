"""How an ASGI app that is mounted in another is told of startup and shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..errors import LoadError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

_COMPLETE, _FAILED = "lifespan.{}.complete", "lifespan.{}.failed"


@asynccontextmanager
async def lifespan(app: ASGIApp, name: str) -> AsyncIterator[dict[str, Any]]:
    """Run *app*'s startup, and its shutdown on leaving; yields what it wants in its requests.

    An app that raises instead of answering has no lifespan, as ASGI has it.

    Args:
        name: of the endpoint, for messages.

    Raises:
        LoadError: its startup failed, or its shutdown did.
    """
    state: dict[str, Any] = {}
    told: asyncio.Queue[Message] = asyncio.Queue()
    said: asyncio.Queue[Message | None] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}

    async def run() -> None:
        try:
            await app(scope, told.get, said.put)
        except Exception:
            pass  # it has none, or has said before what failed
        finally:
            await said.put(None)  # it says no more

    async def step(what: str) -> bool:
        """Return whether there will be another."""
        await told.put({"type": f"lifespan.{what}"})
        answer: Message | None = await said.get()
        if answer is None:
            return False
        if answer["type"] != _COMPLETE.format(what):
            failed = answer["type"] == _FAILED.format(what)
            reason = answer.get("message", "") if failed else f"it said {answer['type']!r:.60}"
            line = reason.strip().rpartition("\n")[2]  # of a traceback, what was raised
            raise LoadError(f"the {what} of the ASGI app of endpoint {name!r} failed: {line}")
        return True

    running = asyncio.create_task(run())
    try:
        if not await step("startup"):
            yield state
            return
        yield state
        await step("shutdown")
    finally:
        running.cancel()
        await asyncio.wait([running])
