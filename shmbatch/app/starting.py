"""Who starts an executor that several processes want at once, and how the others wait for it."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, ExecutorGone, ExecutorNotFound, NameTaken, ShmbatchError
from ..protocol import descriptors, names, owners, ownership
from ..protocol.attempts import Attempt, Look
from ..protocol.clock import deadline_ns, now_ns
from .reports import error_in, report_of

_LOOK_S = (0.002, 0.005, 0.01, 0.02, 0.05)  # between looks at what others do

Found = TypeVar("Found")


def when_served(
    name: str,
    deadline: int | None,
    found: Callable[[], Found | None],
    start: Callable[[], None],
) -> Found:
    """Return what is *found* when somebody serves *name*; have it started if nobody does.

    Of many processes and threads that do this at the same time, one calls *start*. If that
    raises, all that have waited raise the same, and the next to come tries again.

    Args:
        deadline: in nanoseconds of the monotonic clock; None for never.
        found: called when somebody serves the name; None if that has just come to an end.
        start: returns when somebody serves the name, or is about to.

    Raises:
        ExecutorNotFound: nobody serves it in time.
        ConfigError: this process is about to serve it.
        ShmbatchError: whatever *start* raised.
    """
    attempt: Attempt | None = None
    looks = 0
    try:
        while True:
            owner = owners.owner(name)
            if owner is not None and owner.state == ownership.SERVING:
                result = found()
                if result is not None:
                    return result
            if owner is not None and owner.pid == os.getpid():
                raise ConfigError(
                    f"this process is about to serve {name!r} and would wait for itself; "
                    f"call ensure under `if __name__ == '__main__':`"
                )
            if attempt is None:
                attempt = Attempt(name)
            look = attempt.look()
            # Asked anew: an attempt before ours may have just succeeded.
            if look is Look.OURS and owners.owner(name) is None:
                _start(attempt, start)
                attempt = None
            elif look is Look.OVER:
                failure = attempt.failure()
                attempt.close()
                attempt = None
                if failure:
                    error = error_in(json.loads(failure))
                    assert error is not None
                    raise error
            elif is_late(deadline):
                raise ExecutorNotFound(why_late(name, owner))
            else:
                time.sleep(_LOOK_S[min(looks, len(_LOOK_S) - 1)])
                looks += 1
    finally:
        if attempt is not None:
            attempt.leave()


def _start(attempt: Attempt, start: Callable[[], None]) -> None:
    """Call *start*, and end the attempt with what comes of it."""
    try:
        start()
    except NameTaken:
        pass  # somebody else has started one meanwhile
    except ExecutorNotFound:
        attempt.end()  # which is only about our own patience
        raise
    except ShmbatchError as error:
        attempt.end(json.dumps(report_of(error)).encode())
        raise
    attempt.end()


def is_late(deadline: int | None) -> bool:
    return deadline is not None and now_ns() >= deadline


def why_late(name: str, owner: owners.Owner | None) -> str:
    if owner is None:
        return f"no executor serves {name!r} yet; one is about to start, wait longer with timeout="
    return (
        f"the executor of {name!r} (process {owner.pid}) is still {owner.state}; "
        f"wait longer with timeout="
    )


@dataclass(frozen=True)
class OnFirstUse:
    """Under a run of *app*: starts the executor of one instance of a class, when it is used.

    That executor drains when the run is over, whoever has started it.
    """

    file: Path
    app: str
    values: tuple[tuple[str, Any], ...]  # of the class's parameters

    def __call__(
        self, address: names.Address, timeout: float | None, connect: Callable[[], Found]
    ) -> Found:
        """Return what *connect* returns when somebody serves *address*.

        Raises:
            as *connect* where the app does not run, else as `when_served`.
        """
        private = names.resolve(address.app)
        if not private.startswith(names.RUN):
            return connect()  # to whoever has called `shmbatch start FILE::Class`
        name = address.served_as()
        deadline = None if not timeout else deadline_ns(timeout)  # it takes a second at least

        def connected() -> Found | None:
            try:
                return connect()
            except ExecutorNotFound:  # it has just ended
                if is_late(deadline):
                    raise
                return None

        def start() -> None:
            self._start(private, name, address.function.partition(".")[0])

        return when_served(name, deadline, connected, start)

    def _start(self, private: str, name: str, user_class: str) -> None:
        from .child import lifeline_to, serving_child

        owner = owners.owner(private)
        if owner is None or owner.pid is None:
            raise ExecutorGone(f"the run of {self.app!r} is over")
        with descriptors.needed(f"start an executor of '{self.file}'"):
            try:
                # Of the supervisor: it is there as long as the run.
                lifeline = lifeline_to(owner.keeper or owner.pid)
            except ProcessLookupError:
                raise ExecutorGone(f"the run of {self.app!r} is over") from None
        parameters = [
            part for each, value in self.values for part in ("--param", f"{each}={_text(value)}")
        ]
        child = serving_child(
            self.file,
            "--restart",
            *parameters,
            lifeline=lifeline,
            name=name,
            app=self.app,
            run=private,
            user_class=user_class,
        )
        _children.append(child)


# Kept, so that nothing complains that they still run; they end by themselves.
_children: list[Any] = []


@contextmanager
def gone_on_leaving(private: str) -> Iterator[None]:
    """Within this the executor with a private name ends; leave it when its instances have ended.

    They drain by themselves when it is gone.
    """
    # A name is given back shortly before its process ends: look before that as well.
    pidfds = _pidfds(private)
    try:
        yield
        pidfds += _pidfds(private)
        for pidfd in pidfds:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
        _children[:] = [each for each in _children if each.poll() is None]


def wait_for_instances(private: str) -> None:
    """Wait until no executor of an instance is left of the run that had this private name."""
    with gone_on_leaving(private):
        pass


def _pidfds(private: str) -> list[int]:
    """Open a pidfd of each executor of an instance of the run with this private name.

    Or of its supervisor, which is there for longer.
    """
    pidfds = []
    for owner in owners.owners():
        pid = owner.keeper or owner.pid
        if pid is not None and owner.app.startswith(f"{private}-"):
            try:
                pidfds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                pass
    return pidfds


def _text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)
