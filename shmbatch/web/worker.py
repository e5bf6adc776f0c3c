"""A web worker from its start to its end: load, say what there is to serve, wait, serve, finish.

::

    supervisor                          worker
    ----------                          ------
    Popen                     ------>   load the file
                              <------   what it serves, or the error
    start the executor, if need be
    go                        ------>   begin to accept
                              <------   serving
    SIGTERM                   ------>   accept no more, finish
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from ..app.extras import needed
from ..app.load import find_served_app, load_file
from ..app.reports import Reporter, report_of
from ..errors import LoadError, ShmbatchError
from ..protocol import names

_FINISH_S = 10.0  # once the supervisor is dead


@dataclass(frozen=True)
class Orders:
    """What the supervisor tells a worker when it starts it."""

    file: str
    app: str | None  # which of the file's
    name: str | None  # under which its executor serves, if that is not the app's
    limit: int
    listener: int  # descriptors: to accept from,
    report: int  # to report to,
    go: int  # from which to read a byte before beginning,
    supervisor: int  # and the supervisor's pidfd

    def command(self) -> list[str]:
        """Return the command line of a worker that follows these."""
        return [sys.executable, "-P", "-m", __name__, self.file, json.dumps(asdict(self))]


def main() -> None:
    """Be a web worker; the command line is of `Orders`."""
    orders = Orders(**json.loads(sys.argv[2]))
    sys.argv[1:] = []  # the user's file is not to wonder
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for fd in (orders.listener, orders.report, orders.go, orders.supervisor):
        os.set_inheritable(fd, False)
    _end_with(orders.supervisor)
    report = Reporter(orders.report)
    try:
        _serve(orders, report)
    except ShmbatchError as error:
        report.make(report_of(error))
        sys.exit(1)  # the supervisor says why


def _serve(orders: Orders, report: Reporter) -> None:
    for module in ("fastapi", "fastapi_offline", "uvicorn"):
        needed("web", module)
    from .admitting import Admission
    from .server import Server, Shared
    from .site import site_of

    app = find_served_app(load_file(Path(orders.file)), orders.app, orders.name)
    if not app.endpoints:
        raise LoadError(
            f"app {app.name!r} has no endpoints; put @shmbatch.fastapi_endpoint(...) or "
            f"@shmbatch.asgi_app() below @app.function()"
        )
    served = orders.name or app.name
    if served != app.name:
        names.advertise(app.name, served)
    else:
        names.withdraw(app.name)  # in a run of that app: it is the public one that we serve
    site = site_of(app)
    endpoints = [[name, each.method, each.docs] for name, each in app.endpoints.items()]
    calls = bool(app.definitions)
    report.make({"app": app.name, "name": served, "calls": calls, "endpoints": endpoints})
    if not os.read(orders.go, 1):
        return  # the supervisor has changed its mind
    os.close(orders.go)
    # uvicorn finishes at SIGTERM, and then raises it once more, for whoever handled it before.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    admission = Admission(site, orders.limit)
    server = Server(admission, lambda: report.make({"serving": True}, last=True))
    try:
        server.run(sockets=[Shared(fileno=orders.listener)])
    except SystemExit:
        raise LoadError(f"an endpoint of app {app.name!r} failed to start, see above") from None


def _end_with(supervisor: int) -> None:
    """Have this process end when the one of pidfd *supervisor* has: soon, whatever it is doing."""

    def watch() -> None:
        poll = select.poll()
        poll.register(supervisor, select.POLLIN)
        poll.poll()
        os.kill(os.getpid(), signal.SIGTERM)  # finish, or, where nothing has begun, just end
        threading.Event().wait(_FINISH_S)
        os._exit(1)

    threading.Thread(target=watch, name="shmbatch-lifeline", daemon=True).start()


if __name__ == "__main__":
    main()
