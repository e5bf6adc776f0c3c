"""How an executor comes to run in the background: its session, its log, and when it is ready.

::

    whoever starts it      intermediate             executor
    -----------------      ------------             --------
    open log
    Popen         ------>  session of its own
                           fork            ------>  nobody's child, no session's leader
    reap          <------  exit
                  <--------------------------  pid
    open pidfd                                      load the file, where it has to say the name
    follow        <--------------------------  the log has another name
                                                    claim the name, load the file
                  <--------------------------  ready, or the error
    forget it                                       serve
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ExecutorGone, LoadError
from ..protocol import names, ownership
from ..protocol.clock import deadline_ns
from . import launching
from .paths import resolved
from .reports import Reports, error_in

TIMEOUT_S = 120.0
_FORK_S = 30.0  # for Python to start and to fork, in the worst case
_HASTE_S = 5.0  # for the same if there is less time: who has none is to start one all the same
_TERM_S = 5.0  # for an executor that must not stay to end by itself, before it is killed
_TAIL_NBYTES = 4096
_STDOUT, _STDERR = 1, 2  # whatever a user's file makes of sys.stdout

# What is about this process or its service, and no business of an executor that outlives it.
_PERSONAL = (names.PRIVATE_NAMES, "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


def default_log(name: str) -> Path:
    """Return where an executor in the background logs if nobody says where.

    Not beside its socket: that directory is gone when the user logs out or the machine restarts,
    and it is in memory. Source: XDG Base Directory Specification, $XDG_STATE_HOME.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        home = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    except RuntimeError:
        raise ConfigError("there is no home directory; choose a log file with --log") from None
    return home / "shmbatch" / f"{name}.log"


class Log:
    """A log file, open to be appended to.

    It is created for its owner alone. One that exists must be a regular file of this user, or
    ``/dev/null``.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        if path is None:
            path = default_log(name)
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise _unusable(path, str(error.strerror)) from error
        try:
            self.path = Path(os.path.abspath(path))  # noqa: PTH100 - resolves no symbolic link
        except FileNotFoundError:
            raise _unusable(path, "the working directory is gone") from None
        # Neither waits for a reader, should it be a pipe, nor gets a terminal.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self.fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            reason = "it is a symbolic link" if self.path.is_symlink() else str(error.strerror)
            raise _unusable(self.path, reason) from error
        try:
            found = os.fstat(self.fd)
            if str(self.path) != os.devnull:
                if not stat.S_ISREG(found.st_mode):
                    raise _unusable(self.path, "it is not a regular file")
                if found.st_uid != os.geteuid():
                    raise _unusable(
                        self.path, f"it belongs to uid {found.st_uid}, not to uid {os.geteuid()}"
                    )
            os.set_blocking(self.fd, True)
        except BaseException:
            self.close()
            raise
        self.start = found.st_size

    def tail(self) -> list[str]:
        """Return the last lines written since this log was opened, a page at most."""
        end = os.fstat(self.fd).st_size
        start = max(self.start, end - _TAIL_NBYTES)
        return os.pread(self.fd, max(0, end - start), start).decode(errors="replace").splitlines()

    def follow(self, name: str, start: int) -> None:
        """Be the log NAME.log, as which the executor goes on since *start*; see `move_log`."""
        left = self.path if self.start == 0 else None  # nothing is in it but what has been moved
        renamed = Log(None, name)
        os.close(self.fd)
        self.path, self.fd, self.start = renamed.path, renamed.fd, start
        if left is not None:
            left.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def move_log(name: str, since: int) -> int:
    """Have this process, whose output goes to a log, write to NAME.log from now on.

    Args:
        since: where in the log that it has this process began; what follows goes along.

    Returns:
        where that begins in NAME.log.

    Raises:
        ConfigError: as `Log`.
    """
    sys.stdout.flush()
    with Log(None, name) as log:
        said = os.pread(_STDOUT, os.fstat(_STDOUT).st_size, since)
        with open(log.fd, "ab", closefd=False) as file:
            file.write(said)
        for fd in (_STDOUT, _STDERR):
            os.dup2(log.fd, fd)
        return log.start


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"cannot log to '{path}': {reason}; choose another file with --log")


class Detached:
    """An executor in the background, from its start until it is ready.

    Args:
        file: what to serve; a relative path is taken from the working directory, which the
            executor keeps.
        name: what to serve it under; None for the name of its app.
        user_class: serve this class of the file alone.
        params: of that class, each as ``name=value``.
        log: an open log; of an executor without *name*, moved to its app's name if *log_moves*.
        options: more of them, for ``shmbatch start``.

    Raises:
        LoadError: there is no such file.
        ConfigError: the process cannot be started.
    """

    def __init__(
        self,
        file: Path,
        name: str | None,
        log: Log,
        *,
        app: str | None = None,
        user_class: str | None = None,
        params: Sequence[str] = (),
        transport: str | None = None,
        device: str | None = None,
        wait: str | None = None,
        log_moves: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.file = resolved(file)
        if not self.file.is_file():
            raise LoadError(f"there is no file '{self.file}'")
        self.name = name
        self.pid: int | None = None
        self._log = log
        self._pidfd = -1
        environment = {key: os.environ[key] for key in os.environ if key not in _PERSONAL}
        with ExitStack() as undone:
            try:
                ready_out, ready_in = os.pipe()
                undone.callback(os.close, ready_out)
                ready_in = launching.kept(ready_in)
                try:
                    self._intermediate = subprocess.Popen(
                        launching.command(
                            self.file if user_class is None else f"{self.file}::{user_class}",
                            "--background",
                            *(part for each in params for part in ("--param", each)),
                            *(("--log-since", str(log.start)) if log_moves else ()),
                            *options,
                            name=name,
                            app=app,
                            transport=transport,
                            device=device,
                            wait=wait,
                            ready_fd=ready_in,
                        ),
                        pass_fds=(ready_in,),
                        stdin=subprocess.DEVNULL,
                        stdout=log.fd,
                        stderr=log.fd,
                        env=environment,
                        start_new_session=True,
                    )
                finally:
                    os.close(ready_in)
            except OSError as error:
                raise ConfigError(
                    f"cannot start an executor of '{self.file}': {error.strerror}; "
                    f"see the limits of this process, `ulimit -a`"
                ) from error
            undone.pop_all()
        self._reports = Reports(ready_out)

    def wait(self, deadline: int | None) -> None:
        """Return when it serves; sets `name` and `pid`.

        Args:
            deadline: in nanoseconds of the monotonic clock; None for never.

        Raises:
            TimeoutError: it does not serve yet.
            ExecutorGone: it died without a word.
            ShmbatchError: whatever it reports to be wrong.
        """
        if self.pid is None:
            self._meet(deadline)
        report: dict[str, Any] = {}
        while not report.keys() & {"ready", "error"}:
            if "start" in report:
                self._log.follow(report["name"], report["start"])
            found = self._reports.next(self._pidfd if self._pidfd >= 0 else None, deadline)
            if found is None:
                raise ExecutorGone(self._obituary())
            report = found
        error = error_in(report)
        if error is not None:
            raise error
        self.name = report["name"]

    def _meet(self, deadline: int | None) -> None:
        """Wait until it has a process of its own, and get hold of that. Runs no user's code."""
        until, least = deadline_ns(_FORK_S), deadline_ns(_HASTE_S)
        assert until is not None
        assert least is not None
        if deadline is not None:
            until = min(until, max(deadline, least))
        report = self._reports.next(None, until)
        if report is None:
            raise ExecutorGone(self._obituary())
        self.pid = report["pid"]
        try:
            self._pidfd = os.pidfd_open(report["pid"])
        except ProcessLookupError:
            pass  # dead already: so the pipe has an end
        self._intermediate.wait()

    def _obituary(self) -> str:
        who = f"the executor of {self.name!r}" if self.name else f"the executor of '{self.file}'"
        last = self._log.tail()[-1:]
        end = f", which ends with {last[0][:200]!r}" if last else ", where it wrote nothing"
        return f"{who} died while it started; see its log '{self._log.path}'{end}"

    def end(self) -> None:
        """Leave nothing of it: neither executor nor names nor processes that it has started."""
        try:
            self._signal(signal.SIGTERM)
        finally:  # should that be interrupted, it is not waited for any longer
            self._signal(signal.SIGKILL)
            try:
                os.killpg(self._intermediate.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._intermediate.wait()
            ownership.sweep()

    def _signal(self, number: int) -> None:
        """Send it a signal, and wait for a while until it has ended; nothing if it has already."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll(_TERM_S * 1e3)

    def close(self) -> None:
        """Forget about it; whatever it does, it goes on, unless it had not come to fork."""
        if self._intermediate.returncode is None:
            self.end()
        self._reports.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Detached:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def too_slow(executor: Detached, timeout: float) -> LoadError:
    """Return the error of an executor that was not ready within *timeout* seconds."""
    return LoadError(
        f"'{executor.file}' was not loaded within {timeout:g} seconds and its executor was "
        f"stopped; if it needs longer, give it more with --timeout"
    )
