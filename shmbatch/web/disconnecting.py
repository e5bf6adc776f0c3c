"""What becomes of a request whose client has gone: its task is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


def cancelled_on_disconnect(app: ASGIApp) -> ASGIApp:
    """Return *app*, cancelled where the client goes before the response has been sent.

    What it awaits is cancelled with it, a call of ours among that.
    """

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        # One message ahead of the app, which then alone decides how fast a body is read.
        read: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        is_over = is_gone = False

        async def watch() -> None:
            nonlocal is_gone
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    break
                await read.put(message)
            if not is_over:  # after the response the server says that too
                is_gone = True
                task.cancel()
            while True:  # to whoever asks again
                await read.put(message)

        async def sent(message: Message) -> None:
            nonlocal is_over
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                is_over = True  # what the app does now, in the background, it may finish
            await send(message)

        watching = asyncio.create_task(watch())
        try:
            await app(scope, read.get, sent)
        except asyncio.CancelledError:
            if not is_gone or task.uncancel():
                raise  # somebody else cancels too
        else:
            if is_gone:
                task.uncancel()  # the app has caught it
        finally:
            is_over = True
            watching.cancel()

    return watched
