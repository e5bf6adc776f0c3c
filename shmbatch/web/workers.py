"""A web worker as its supervisor sees it: what it has loaded, and whether it serves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..app.launching import kept
from ..errors import LoadError
from .child import Child
from .worker import Orders


class Worker(Child):
    """A child that is a web worker; see `worker` for what the two say to each other.

    Args:
        orders: those of `Orders` that do not differ from one worker to the next.
        fds: the descriptors among them.
        environment: how it is to wait for results, and what executors are to be like that the
            user's code starts.
    """

    def __init__(
        self, orders: Mapping[str, Any], fds: Sequence[int], environment: Mapping[str, str]
    ) -> None:
        self._description: dict[str, Any] | None = None
        self._serves = False
        go_out, self._go = os.pipe()
        go_out = kept(go_out)
        try:
            super().__init__(
                "a web worker",
                lambda fd: Orders(**orders, report=fd, go=go_out).command(),
                fds=(*fds, go_out),
                environment=environment,
                gone=LoadError,
            )
        except BaseException:
            os.close(self._go)
            raise
        finally:
            os.close(go_out)

    async def loaded(self) -> dict[str, Any]:
        """Wait until it has loaded its file; return what it says is in it.

        Raises:
            LoadError: it does not load, or the worker has ended.
        """
        if self._description is None:
            self._description = await self.report()
        return self._description

    async def serving(self) -> None:
        """Let it go, once it has loaded, and wait until it accepts connections.

        Raises:
            LoadError: the startup of an endpoint failed, or the worker has ended.
        """
        if not self._serves:
            if self.status is None:
                with suppress(BrokenPipeError):  # it is dead, which its report will say
                    os.write(self._go, b"x")  # more than once does no harm
            await self.report()
            self._serves = True

    def _bury(self) -> None:
        os.close(self._go)
        super()._bury()
