"""How an executor is made to end: asked if it can hear, signalled if it cannot, and waited for."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

from ..errors import ConfigError, ExecutorNotFound, ShmbatchError
from ..protocol import control, descriptors, directory, names, owners, ownership
from ..protocol.clock import deadline_ns, now_ns
from ..protocol.supervision import STOP, STOP_NOW
from .handshake import ANSWER_S, silent, unserved

_KILL_S = 5.0  # an executor that has nothing to finish, and has not ended by then, is killed
_AGAIN_S = 0.01


class Stopped(NamedTuple):
    """What became of one executor that was to end."""

    app: str
    pid: int | None  # of the process that has ended
    error: ShmbatchError | None  # why none has


def stop(app: str, *, now: bool = False) -> None:
    """Have the executor of *app* end; return when its process is gone.

    One that drains already is waited for, one that still loads is interrupted. If it has nothing
    to finish, because it loads or because of *now*, it is killed where it has not ended after
    five seconds. Its supervisor is waited for too, and so is one that it has replaced and that
    drains.

    Args:
        now: lose calls already made instead of finishing them.

    Raises:
        ExecutorNotFound: nobody serves *app*, or it does not answer.
        ConfigError: *app* is not a name, or this process may open no more descriptors.
    """
    (stopped,) = stop_all([app], now=now)
    if stopped.error is not None:
        try:
            raise stopped.error
        finally:
            del stopped  # or the error's traceback and this frame would keep each other alive


def stop_all(apps: Sequence[str], *, now: bool = False) -> list[Stopped]:
    """Do as `stop` for several at the same time; return what became of each, in order."""
    ending: dict[str, _Ending] = {}
    errors: dict[str, ShmbatchError] = {}
    try:
        for app in apps:
            if app not in ending:
                try:
                    with descriptors.needed(f"stop the executor of {app!r}"):
                        ending[app] = _tell(app, now)
                except ShmbatchError as error:
                    errors[app] = error.with_traceback(None)  # likewise
        silenced = _wait(ending.values(), now)
        for app in ending:
            while ending[app] not in silenced and not _ends(ending[app]):
                # It died before it could pass on that it is to stop, and another one follows it.
                try:
                    told = _tell(app, now)
                except ExecutorNotFound:
                    continue  # that one has died, too, or the supervisor has just ended
                ending[app].close()
                ending[app] = told
                silenced += _wait([told], now)
        for app in [app for app, each in ending.items() if each in silenced]:
            errors[app] = _deaf(app)
            ending.pop(app).close()
    finally:
        for each in ending.values():
            each.close()
    with suppress(ConfigError):  # which is no reason to tell nobody what has become of these
        ownership.sweep()  # after those that were killed, now or earlier
    return [
        Stopped(app, ending[app].pid if app in ending else None, errors.get(app)) for app in apps
    ]


class _Ending(NamedTuple):
    """An executor that has been told to end."""

    name: str
    pid: int | None
    pidfd: int
    sock: socket.socket | None = None  # where it was asked to, and says that it will
    keeper: int = -1  # a pidfd of its supervisor, which ends when it has ended

    def close(self) -> None:
        os.close(self.pidfd)
        if self.keeper >= 0:
            os.close(self.keeper)
        if self.sock is not None:
            self.sock.close()


def _tell(app: str, now: bool) -> _Ending:
    """Have the executor of *app* begin to end."""
    name = names.resolve(app)
    deadline = deadline_ns(ANSWER_S)
    while True:
        owner = owners.owner(name)
        if owner is None:
            ownership.sweep()
            raise unserved(app)
        try:
            if owner.state != ownership.SERVING and owner.keeper is not None:
                return _tell_supervisor(owner, owner.keeper, now)
            with ExitStack() as undone:
                keeper = -1
                if owner.keeper is not None:
                    keeper = os.pidfd_open(owner.keeper)
                    undone.callback(os.close, keeper)
                if owner.state == ownership.SERVING or owner.pid is None:
                    told = _ask(name, now)
                else:
                    told = _signal(owner, owner.pid, now)
                undone.pop_all()
                return told._replace(keeper=keeper)
        except (ProcessLookupError, EOFError, ConnectionError, FileNotFoundError):
            pass  # it has just died, begun to drain, or not begun to listen: look again
        except TimeoutError:
            raise silent(app, ANSWER_S) from None
        except BlockingIOError:
            raise silent(app, None) from None
        if deadline is not None and now_ns() > deadline:
            raise silent(app, ANSWER_S)
        select.poll().poll(_AGAIN_S * 1000)


def _ask(name: str, now: bool) -> _Ending:
    with ExitStack() as undone:
        sock = undone.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        sock.settimeout(ANSWER_S)
        sock.connect(str(directory.socket_path(name)))
        pidfd = control.peer_pidfd(sock)
        undone.callback(os.close, pidfd)
        if control.is_gone(sock, pidfd):  # a child of the dead executor still listens
            raise EOFError
        control.send(sock, {"kind": "stop", "now": now})
        undone.pop_all()
        return _Ending(name, control.peer_credentials(sock).pid, pidfd, sock)


def _tell_supervisor(owner: owners.Owner, keeper: int, now: bool) -> _Ending:
    """Have the supervisor end what loads, drains, or is about to be started."""
    pidfd = os.pidfd_open(keeper)
    try:
        # Looked up by number: the pidfd is the supervisor's if that still keeps the name.
        again = owners.owner(owner.app)
        if again is None or again.keeper != keeper:
            raise ProcessLookupError
        signal.pidfd_send_signal(pidfd, STOP_NOW if now else STOP)
    except BaseException:
        os.close(pidfd)
        raise
    return _Ending(owner.app, keeper, pidfd)


def _signal(owner: owners.Owner, pid: int, now: bool) -> _Ending:
    """Send a signal to one that does not listen: it loads, or drains."""
    pidfd = os.pidfd_open(pid)
    try:
        again = owners.owner(owner.app)  # as above
        if again is None or again.pid != pid:
            raise ProcessLookupError
        if owner.state == ownership.LOADING:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        elif now:
            # It has closed its socket. What it leaves behind is swept.
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except BaseException:
        os.close(pidfd)
        raise
    return _Ending(owner.app, pid, pidfd)


def _ends(ending: _Ending) -> bool:
    """Wait until the supervisor of a dead executor ends; False if it has another one instead.

    Or may start one, or waits for one that was replaced: it cannot be told which, and is to be
    told to end in either case.
    """
    keeper = select.poll()
    if ending.keeper >= 0:
        keeper.register(ending.keeper, select.POLLIN)
    while ending.keeper >= 0 and not keeper.poll(_AGAIN_S * 1000):
        owner = owners.owner(ending.name)
        if owner is not None and owner.pid not in (None, ending.pid):
            return False
    return True


def _wait(ending: Iterable[_Ending], now: bool) -> list[_Ending]:
    """Wait until all are dead; meanwhile kill those that have no reason to take so long.

    Returns:
        those that were asked, said nothing, and are waited for no longer.
    """
    left = {each.pidfd: each for each in ending}
    # Who is to end now may do so before it has said anything, and is killed if it does not.
    unheard = {each.sock.fileno(): each for each in left.values() if each.sock and not now}
    silenced: list[_Ending] = []
    poll = select.poll()
    for fd in (*left, *unheard):
        poll.register(fd, select.POLLIN)
    kill_ns, silent_ns = deadline_ns(_KILL_S), deadline_ns(ANSWER_S)
    while left:
        if not unheard:
            silent_ns = None
        timers = [at_ns for at_ns in (kill_ns, silent_ns) if at_ns is not None]
        patience_ms = max(0.0, (min(timers) - now_ns()) / 1e6) if timers else None
        for fd, _ in poll.poll(patience_ms):
            poll.unregister(fd)
            left.pop(fd, None)
            unheard.pop(fd, None)
        if kill_ns is not None and now_ns() >= kill_ns:
            kill_ns = None  # from now on, whatever time it takes
            for each in left.values():
                if now or _still_loads(each):
                    _kill(each)
        if silent_ns is not None and now_ns() >= silent_ns:
            for sock_fd, each in unheard.items():
                poll.unregister(sock_fd)
                if left.pop(each.pidfd, None):
                    poll.unregister(each.pidfd)
                    silenced.append(each)
            unheard.clear()
    return silenced


def _kill(ending: _Ending) -> None:
    try:
        signal.pidfd_send_signal(ending.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has just died by itself


def _deaf(app: str) -> ExecutorNotFound:
    return ExecutorNotFound(f"{silent(app, ANSWER_S)}; end it with `shmbatch stop {app} --now`")


def _still_loads(ending: _Ending) -> bool:
    """Say whether it heeds no signal in its user's import; it has taken no call then.

    Not of a supervisor, which may be waiting for one that drains.
    """
    owner = owners.owner(ending.name)
    if owner is None or owner.pid != ending.pid or owner.pid == owner.keeper:
        return False
    return owner.state == ownership.LOADING
