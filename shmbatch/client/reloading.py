"""How an executor is replaced by one that has loaded its file anew, and who waits for that."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ExecutorGone, HandshakeError
from ..protocol import control
from .asking import asked
from .greeting import refusal
from .handshake import ANSWER_S


class Reloaded(NamedTuple):
    """What a reload has cost."""

    pid: int  # of the executor that serves now
    load_s: float  # how long it took to load
    gap_s: float  # for how long no executor accepted producers


def reload(app: str) -> Reloaded:
    """Have the supervisor of *app*'s executor replace it; return when another one has taken over.

    The new one loads the file while the old one serves. Producers turn to the new one by
    themselves, and what they had published before runs in the old one. Waits as long as loading
    takes. If it fails the old one goes on.

    Raises:
        ExecutorNotFound: nobody serves *app*.
        HandshakeError: its executor has no supervisor.
        LoadError: the file does not load any more; or whatever else the new one reports.
        ExecutorGone: the new executor died while it loaded, or the supervisor did.
        ExecutorClosed: it was stopped meanwhile.
    """
    with asked(app, {"kind": "reload"}, ANSWER_S) as (sock, _):
        sock.settimeout(None)
        try:
            # No pidfd: who asks is passed on to the supervisor, and its socket ends with that.
            message, _ = control.receive(sock)
        except (EOFError, ConnectionError):
            raise ExecutorGone(f"the supervisor of {app!r} died during the reload") from None
        if message["kind"] == "refused":
            raise refusal(message)
        if message["kind"] != "reloaded":
            raise HandshakeError(f"{app!r} answered with {message['kind'][:40]!r}")
        return Reloaded(message["pid"], message["load_ns"] / 1e9, message["gap_ns"] / 1e9)
