"""`ensure`: a handle to a function that is served, by an executor that is started if need be."""

from __future__ import annotations

import os
from pathlib import Path

from ..client.connecting import handle
from ..client.function import Function
from ..client.handshake import answer_within
from ..contract.device import device_name
from ..errors import ExecutorNotFound, NameTaken, ShmbatchError
from ..protocol import names, owners
from ..protocol.clock import deadline_ns
from ..protocol.transport import transport_name
from .detaching import TIMEOUT_S, Detached, Log
from .starting import is_late, when_served, why_late


def ensure(
    address: str,
    file: str | os.PathLike[str],
    *,
    timeout: float | None = TIMEOUT_S,
    transport: str | None = None,
    device: str | None = None,
    wait: str | None = None,
    arrays: str = "native",
    log: str | os.PathLike[str] | None = None,
) -> Function:
    """Connect to a function; if nobody serves it, start an executor of *file* first.

    The executor runs in the background, as with ``shmbatch start --detach``, and outlives this
    process. Many processes may do this at the same time: one of them starts it, all connect. If
    the file does not load, all that have waited for it get the reason, and the next to come tries
    again. Where somebody serves the name already, *file* is not looked at.

    Args:
        address: ``"app.function"`` or ``"app.Class.method"``. The executor serves under this
            app's name, whatever the file calls its app; of several in the file, the one so named.
        file: a relative path is taken from the working directory, which the executor keeps.
        timeout: seconds to wait, None for ever. An executor that is not ready by then goes on.
            Whatever it is, one that serves has a second to answer, and one that is started has
            five to get a process of its own.
        transport: of an executor that is started; by default what SHMBATCH_TRANSPORT says.
        device: where functions on tensors run in an executor that is started, as of `App.run`; by
            default what SHMBATCH_DEVICE says.
        wait: ``"auto"``, ``"spin"`` or ``"park"``, for this process and for an executor that is
            started; by default what SHMBATCH_WAIT says.
        arrays: as of `connect`.
        log: where an executor that is started logs; by default
            ``~/.local/state/shmbatch/<app>.log``.

    Raises:
        LoadError: the file is missing, or does not load.
        ExecutorGone: an executor that was started died without a word.
        ExecutorNotFound: no executor was ready in time.
        HandshakeError: the executor has another version, or no such function.
        ConfigError: an argument, SHMBATCH_TRANSPORT or SHMBATCH_DEVICE is wrong, or the log file
            cannot be used.
    """
    deadline = deadline_ns(timeout)
    function = handle(address, arrays=arrays, wait=wait)
    app = function.address.app
    transport_name(transport)
    device_name(device)
    if names.resolve(app) != app:  # inside a run: that executor and no other
        function.connect(timeout, answer_s=answer_within(deadline), served=True)
        return function
    path = Path(file)

    def connected() -> Function | None:
        try:
            function.connect(0, answer_s=answer_within(deadline), served=True)
        except ExecutorNotFound:  # it has just ended, or does not answer
            if is_late(deadline):
                raise
            return None
        return function

    def start() -> None:
        _start(app, path, deadline, transport, device, wait, log)

    return when_served(app, deadline, connected, start)


def _start(
    app: str,
    file: Path,
    deadline: int | None,
    transport: str | None,
    device: str | None,
    wait: str | None,
    log: str | os.PathLike[str] | None,
) -> None:
    """Start an executor in the background; return when it serves."""
    with (
        Log(None if log is None else Path(log), app) as opened,
        Detached(file, app, opened, transport=transport, device=device, wait=wait) as executor,
    ):
        try:
            executor.wait(deadline)
        except TimeoutError:
            if executor.pid is None:  # nor shall it get one
                raise ExecutorNotFound(
                    f"an executor of {app!r} had no process of its own in time and was "
                    f"stopped; wait longer with timeout="
                ) from None
            # It goes on; whoever waits longer, or comes later, finds it.
            raise ExecutorNotFound(why_late(app, owners.owner(app))) from None
        except NameTaken:
            raise
        except ShmbatchError:
            executor.end()
            raise
