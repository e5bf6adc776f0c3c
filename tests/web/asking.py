"""An ASGI app asked without a server; what the client does is the test's to say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Exchange:
    """One request and what comes of it."""

    app: Any
    method: str = "GET"
    path: str = "/"
    body: Any = None
    sent: list[dict[str, Any]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0  # for messages, by the app

    async def run(self) -> Exchange:
        path, _, query = self.path.partition("?")
        await self.app(
            {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": self.method,
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "query_string": query.encode(),
                "root_path": "",
                "headers": [(b"host", b"here"), (b"content-type", b"application/json")],
                "server": ("here", 80),
                "client": ("there", 1),
            },
            self.receive,
            self.send,
        )
        return self

    async def receive(self) -> dict[str, Any]:
        self.asked += 1
        if self.asked == 1:
            body = b"" if self.body is None else json.dumps(self.body).encode()
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def text(self) -> str:
        return b"".join(each.get("body", b"") for each in self.sent[1:]).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)
