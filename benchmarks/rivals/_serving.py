"""How a rival's server runs: in a process of its own, which ends with the measurement.

A rival's file has a function ``serve(work, address, **options)``, which serves until it is told
to stop by SIGTERM, or by SIGINT where that is what its documentation says. It runs in a process
that was started for it, as the rival's pages would have it: ``python server.py``.
"""

from __future__ import annotations

import importlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from benchmarks._works import Work
from benchmarks.rivals._http import Address, connect

START_S = 90.0  # Ray, the slowest, needs some 10 s
STOP_S = 20.0
LINES = 5  # of what a server wrote, where it fails


@contextmanager
def serving(
    module: str,
    work: Work,
    address: Address,
    stop: signal.Signals = signal.SIGTERM,
    ready: Callable[[], bool] | None = None,
    **options: object,
) -> Iterator[None]:
    """Serve a work from now until the block is left.

    Args:
        module: The module whose function `serve` does so.
        address: Where it is to listen.
        stop: What tells it to end.
        ready: Says whether it serves; None: it does once somebody listens at the address.
    """
    with tempfile.TemporaryFile() as written:
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rivals._serving"],
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            assert server.stdin is not None
            with server.stdin as pipe:
                pickle.dump((module, work, address, options), pipe)
            _wait(server, ready or (lambda: _listens(address)))
            yield
        except Exception as error:
            written.seek(0)
            lines = written.read().decode(errors="replace").splitlines()
            error.add_note("the server wrote last: " + " | ".join(lines[-LINES:]))
            raise
        finally:
            server.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                server.wait(STOP_S)
            server.kill()
            server.wait()


def _wait(server: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not ready():
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode} before it served")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server does not serve after {START_S:.0f} s")
        time.sleep(0.05)


def _listens(address: Address) -> bool:
    try:
        connect(address).close()
    except OSError:
        return False
    return True


def main() -> None:
    module, work, address, options = pickle.load(sys.stdin.buffer)
    importlib.import_module(module).serve(work, address, **options)


if __name__ == "__main__":
    main()
