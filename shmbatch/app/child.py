"""An executor as a child of this process, from its start until it serves."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from ..errors import ExecutorGone
from ..protocol import descriptors, names, ownership
from .launching import command, kept
from .reports import Reports, error_in


def serving_child(
    file: Path,
    *options: str,
    lifeline: int,
    name: str,
    app: str | None = None,
    run: str | None = None,
    user_class: str | None = None,
    transport: str | None = None,
    device: str | None = None,
    wait: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start an executor of *file*, and return it when it serves; with --restart, its supervisor.

    It is in a session of its own: a Ctrl-C is for us, who tell it to drain.

    Args:
        options: more of them, for ``shmbatch start``.
        lifeline: pidfd of the process at whose death it drains; this closes it. Not a pipe: a
            fork of ours would keep its other end open after our death.
        app: which one of the file; by default the only one.
        run: private name of *app*, as which its functions are known in the executor, too.
        user_class: serve this class of the file alone.

    Raises:
        ExecutorGone: it died without a word.
        ShmbatchError: whatever it reports to be wrong.
        ConfigError: this process may open no more descriptors.
    """
    with ExitStack() as undone, ExitStack() as passed:
        passed.callback(os.close, lifeline)
        with descriptors.needed(f"start an executor of '{file}'"):
            ready_out, ready_in = os.pipe()
            undone.callback(os.close, ready_out)
            ready_in = kept(ready_in)
            passed.callback(os.close, ready_in)
            child = subprocess.Popen(
                command(
                    file if user_class is None else f"{file}::{user_class}",
                    *("--supervisor-fd", str(lifeline), *options),
                    name=name,
                    app=app,
                    transport=transport,
                    device=device,
                    wait=wait,
                    ready_fd=ready_in,
                ),
                pass_fds=(ready_in, lifeline),
                stdin=subprocess.DEVNULL,
                env=None if app is None or run is None else names.environment(app, run),
                start_new_session=True,
            )
        passed.close()
        undone.pop_all()
    try:
        with Reports(ready_out) as reports:
            _wait_until_ready(child, reports, name if app is None else app)
    except BaseException:
        if end(child) != 0:
            ownership.sweep()  # it was killed, and could not remove its own
        raise
    return child


def lifeline_to(pid: int) -> int:
    """Return a pidfd of *pid*, to be passed on."""
    return kept(os.pidfd_open(pid))


def end(child: subprocess.Popen[bytes]) -> int:
    """Have an executor drain, wait until it is gone, and return its exit status."""
    if child.poll() is None:
        child.terminate()
    return child.wait()


def _wait_until_ready(child: subprocess.Popen[bytes], reports: Reports, app: str) -> None:
    pidfd = os.pidfd_open(child.pid)  # not reaped yet, so certainly its own
    try:
        report = reports.next(pidfd, None)
    finally:
        os.close(pidfd)
    if report is None:
        raise ExecutorGone(
            f"the executor of app {app!r} died while it started; see its output above"
        )
    error = error_in(report)
    if error is not None:
        raise error
