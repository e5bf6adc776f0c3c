"""``shmbatch start FILE``: the executor daemon, in the foreground or in the background."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..app.reports import Reporter, report_of
from ..contract.device import device_name
from ..errors import LoadError, ShmbatchError
from ..protocol.descriptors import shortage
from ..protocol.spinning import MODES
from ..protocol.transport import transport_name
from . import admission as admitting
from . import options
from .printing import say
from .target import Target

if TYPE_CHECKING:
    from ..contract.definition import Definition
    from ..protocol.orders import Orders

log = logging.getLogger("shmbatch.executor")

_TAIL_LINES = 20
_STDOUT = 1


@click.command("start")
@click.argument("target", metavar="FILE[::CLASS]")
@click.option(
    "--param",
    "params",
    metavar="NAME=VALUE",
    multiple=True,
    help="With ::CLASS: a parameter of the class. Those that are not given have their defaults.",
)
@click.option("--name", metavar="NAME", help="Serve under this name instead of the app's.")
@options.app
@options.transport
@options.device
@click.option(
    "--wait",
    type=click.Choice(MODES),
    default="auto",
    envvar="SHMBATCH_WAIT",
    show_default=True,
    help="How the executor waits for calls: auto spins as long as that pays, spin always does, "
    "park never. [env: SHMBATCH_WAIT]",
)
@admitting.options
@click.option(
    "--restart",
    is_flag=True,
    help="Start the executor again when it dies; `shmbatch reload` has it load FILE anew.",
)
@click.option("--detach", is_flag=True, help="Run in the background; return when it serves.")
@click.option(
    "--log",
    "log_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --detach: append what it says to this file, by default to "
    "~/.local/state/shmbatch/NAME.log.",
)
@click.option(
    "--timeout",
    type=options.Number(min=0),
    metavar="SECONDS",
    help="With --detach: stop it if it does not serve by then; 120 by default.",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--supervisor-fd", type=int, hidden=True)
@click.option("--background", is_flag=True, hidden=True)
@click.option("--log-since", type=int, hidden=True)  # and have it move when the name is known
def command(
    target: str,
    params: tuple[str, ...],
    name: str | None,
    app_name: str | None,
    transport: str | None,
    device: str | None,
    wait: str,
    admission: admitting.Admission,
    restart: bool,
    detach: bool,
    log_file: Path | None,
    timeout: float | None,
    ready_fd: int | None,
    supervisor_fd: int | None,
    background: bool,
    log_since: int | None,
) -> None:
    """Serve FILE's functions until stopped, or one instance of a class of it.

    SIGTERM, Ctrl-C and `shmbatch stop` let calls already made finish; a second signal does not.
    With --restart SIGHUP reloads FILE.
    """
    served = Target.parse(target, app_name, params)
    transport = transport_name(transport)
    device = device_name(device)
    admission.check(transport)
    if detach:
        _detach(served, name, transport, device, wait, admission, restart, log_file, timeout)
        return
    for option, value in (("--log", log_file), ("--timeout", timeout)):
        if value is not None:
            raise click.UsageError(f"{option} goes with --detach")
    report = Reporter(ready_fd)
    if background:
        # Before anything is imported that may start threads, which a fork would lose.
        _fork()
        report.make({"pid": os.getpid()})
    from ..executor.notifying import notifier

    notify = notifier()
    if ready_fd is not None:
        notify = _tell_nobody  # it is for who started us, not for us
        if not background:
            # A child of somebody: what it says is the parent's business.
            logging.getLogger("shmbatch").setLevel(logging.WARNING)
    if supervisor_fd is not None:
        os.set_inheritable(supervisor_fd, False)
    under_run, orders = supervisor_fd is not None, None
    if restart:
        orders = _supervised(supervisor_fd, notify, report)
        # From here on this is an executor; the supervisor has stayed behind.
        supervisor_fd, notify = None, orders.notify
    try:
        _serve(
            *(served, name, transport, device, wait, admission, report, supervisor_fd, orders),
            under_run,
            notify,
            log_since,
        )
    except ShmbatchError as error:
        if orders is not None:
            orders.say("failed", **report_of(error))
            if orders.name is not None:
                sys.exit(1)  # the supervisor says why
        if ready_fd is None:
            raise
        if background:
            log.error("%s", error)
        report.make(report_of(error))
        sys.exit(1)  # who started us says why
    except KeyboardInterrupt:
        if ready_fd is None:
            raise
        sys.exit(1)  # while it loaded; who started us has had it end, and says so


def _serve(
    target: Target,
    name: str | None,
    transport: str,
    device: str,
    wait: str,
    admission: admitting.Admission,
    report: Reporter,
    supervisor_fd: int | None,
    orders: Orders | None,
    under_run: bool,
    notify: Any,
    log_since: int | None,
) -> None:
    from ..app.paths import resolved
    from ..client.function import serving
    from ..executor.process import serve
    from ..protocol.names import RUN

    file = target.file

    def load() -> Sequence[Definition]:
        serving(target.name(name))
        serving(served)
        return target.definitions(name, under_run=under_run)

    try:
        # The name is needed before the file is loaded, unless the file has to say it.
        served = name if name is not None else target.name(None)
        before = None if orders is None else orders.name
        if before not in (None, served):
            raise LoadError(
                f"'{file}' has app {served!r} now and had {before!r}; stop that one and start "
                f"this, or give the name with --name"
            )
        if before is None and log_since is not None and served != file.stem:
            from ..app.detaching import move_log

            report.make({"name": served, "start": move_log(served, log_since)})
            if orders is not None:
                orders.say("log", [_STDOUT])
        serve(
            served,
            load,
            transport=transport,
            device=device,
            wait=wait,
            ready=lambda: report.make({"ready": True, "name": served}, last=True),
            supervisor_fd=supervisor_fd,
            orders=orders,
            file=resolved(file),
            called=target.app if served.startswith(RUN) else None,
            notify=notify,
            access=admission.access(),
            quotas=admission.quotas(),
        )
    except OSError as error:
        told = shortage(f"serve '{file}'", error)
        if told is None:
            raise
        raise told from error


def _supervised(supervisor_fd: int | None, notify: Any, report: Reporter) -> Orders:
    """Return in each executor that this process, now a supervisor, forks."""
    from ..supervisor.process import supervise

    orders = supervise(lifeline=supervisor_fd, notify=notify, forked=report.close)
    if isinstance(orders, int):
        sys.exit(orders)
    return orders


def _tell_nobody(**state: object) -> None:
    pass


def _fork() -> None:
    """Go on in a child of a child: not the session's leader, so that no terminal becomes ours."""
    if os.fork():
        os._exit(0)


def _detach(
    target: Target,
    name: str | None,
    transport: str,
    device: str,
    wait: str,
    admission: admitting.Admission,
    restart: bool,
    log_file: Path | None,
    timeout: float | None,
) -> None:
    from ..app.detaching import TIMEOUT_S, Detached, Log, too_slow
    from ..protocol import directory, ownership
    from ..protocol.clock import deadline_ns

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C while we wait
    timeout = TIMEOUT_S if timeout is None else timeout
    deadline = deadline_ns(timeout)
    ownership.sweep()
    if name is not None:
        directory.socket_path(name)  # says what is wrong with it
    with (
        Log(log_file, name if name is not None else target.file.stem) as opened,
        Detached(
            target.file,
            name,
            opened,
            app=target.app,
            user_class=target.user_class,
            params=target.params,
            transport=transport,
            device=device,
            wait=wait,
            log_moves=name is None and log_file is None,
            options=[*admission.arguments(), *(["--restart"] if restart else [])],
        ) as executor,
    ):
        try:
            executor.wait(deadline)
        except BaseException as error:
            executor.end()
            if isinstance(error, TimeoutError):
                raise too_slow(executor, timeout) from None
            if isinstance(error, ShmbatchError):
                tail = opened.tail()
                if tail and tail[-1].endswith(str(error)):  # which is said below
                    tail.pop()
                for line in tail[-_TAIL_LINES:]:
                    click.echo(line, err=True)
            raise
        how = "kept served" if restart else "served"
        say(f"{executor.name} is {how} by process {executor.pid}, log {opened.path}")
