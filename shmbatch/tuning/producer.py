"""A process that makes calls: one after another, always some outstanding, or at random times.

    python -m shmbatch.tuning.producer '{"input": ..., ...}'

Commands come as lines of JSON, each is answered by one; times are of the monotonic clock::

    {"connect": addresses}                  {"slots": [n, ...]}
    {"lone": address, "until_ns": t}        {"latencies_ns": [...]}
    {"full": address, "outstanding": n, "begin_ns": t, "end_ns": u}
                                            {"calls_per_s": r}
    {"open": address, "rate": r, "seed": s, "nap_ns": n, "begin_ns": t, "end_ns": u}
                                            {"latencies_ns": [...], "late_ns": n}
    end of file                             (it ends)
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import cycle
from statistics import median
from typing import Any

from ..app.reports import Reporter, report_of
from ..client.call import FunctionCall
from ..client.connecting import connect
from ..client.function import Function
from ..errors import CallTimeout, ConfigError, ShmbatchError
from ..protocol import _core
from ..protocol.clock import now_ns
from .examples import examples_for

_TIMER_SLACK_NS = 1_000  # the default would have every call come 50 us late
_LONE_CALLS = 100
_PAUSE_S = 0.002  # between lone calls: executor and caller are asleep by then


def main() -> None:
    """Do what the commands say, until there are no more."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    report = Reporter(asked["reports"])
    os.set_inheritable(asked["commands"], False)
    _core.set_timer_slack(_TIMER_SLACK_NS)
    try:
        with os.fdopen(asked["commands"]) as commands:
            callers: dict[str, _Caller] = {}
            for line in commands:
                command = json.loads(line)
                if "connect" in command:
                    callers = {
                        each: _Caller(each, asked["input"], asked["seed"])
                        for each in command["connect"]
                    }
                    report.make({"slots": [each.slots for each in callers.values()]})
                elif "lone" in command:
                    report.make(callers[command.pop("lone")].lone(**command))
                elif "full" in command:
                    report.make(callers[command.pop("full")].full(**command))
                else:
                    report.make(callers[command.pop("open")].open(**command))
    except ShmbatchError as error:
        report.make(report_of(error))
        sys.exit(1)
    except Exception as error:  # what the function raised
        told = ConfigError(f"a call failed under load: {type(error).__name__}: {error}")
        report.make(report_of(told))
        sys.exit(1)


class _Caller:
    """Calls one function."""

    def __init__(self, address: str, file: str | None, seed: int) -> None:
        self._function: Function = connect(address, arrays="numpy")
        connection = self._function.connect()
        self.slots = connection.capacity
        examples = examples_for(connection.signature, address, file, seed)
        self._next: Callable[[], tuple[Any, ...]] = cycle(examples.calls).__next__

    def lone(self, until_ns: int) -> dict[str, Any]:
        """Call, wait, pause; return how long each call took, of one at least."""
        latencies_ns: list[int] = []
        while not latencies_ns or (now_ns() < until_ns and len(latencies_ns) < _LONE_CALLS):
            time.sleep(_PAUSE_S)
            arguments = self._next()
            began_ns = now_ns()
            self._function.remote(*arguments)
            latencies_ns.append(now_ns() - began_ns)
        return {"latencies_ns": latencies_ns}

    def full(self, outstanding: int, begin_ns: int, end_ns: int) -> dict[str, Any]:
        """Keep so many calls outstanding; return how many a second were done.

        By Little's law, from how long they took: batches end all at once, and to count how many
        ends fall between two moments would be wrong by one of them.
        """
        spawn, arguments = self._function.spawn, self._next
        pending = deque((now_ns(), spawn(*arguments())) for _ in range(outstanding))
        calls = total_ns = 0
        while True:
            since_ns, call = pending.popleft()
            call.get()
            at_ns = now_ns()
            if at_ns >= begin_ns:
                calls += 1
                total_ns += at_ns - since_ns
            if at_ns >= end_ns:
                break
            pending.append((at_ns, spawn(*arguments())))
        for _, call in pending:
            call.cancel()
        return {"calls_per_s": outstanding / (total_ns / calls) * 1e9}

    def open(
        self, rate: float, seed: int, nap_ns: int, begin_ns: int, end_ns: int
    ) -> dict[str, Any]:
        """Call at random times, whatever is outstanding; return how long each call took, and how
        late half of them were made.

        It took from when it was to be made, so a call that had to wait for its slot counts whole.
        Calls of one thread are answered in order, so the oldest is the one to wait for. To be
        woken for each call takes more time than to make it: calls that are due within a nap are
        made together, the first of them late.
        """
        gap = random.Random(seed)
        latencies_ns: list[int] = []
        late_ns = [0]
        pending = deque[tuple[int, FunctionCall]]()
        due_ns = begin_ns + int(gap.expovariate(rate) * 1e9)
        # Others come after the last that counts, or it would wait for company in vain.
        while due_ns < end_ns or (pending and pending[0][0] < end_ns):
            at_ns = now_ns()
            while due_ns <= at_ns:
                late_ns.append(now_ns() - due_ns)
                pending.append((due_ns, self._function.spawn(*self._next())))
                due_ns += int(gap.expovariate(rate) * 1e9)
            while pending and pending[0][1].done():
                since_ns, call = pending.popleft()
                call.get()
                if since_ns < end_ns:
                    latencies_ns.append(now_ns() - since_ns)
            patience_ns = due_ns - now_ns()
            if pending and patience_ns > nap_ns:
                _wait(pending[0][1], patience_ns / 1e9)
            elif patience_ns > 0:
                time.sleep(max(patience_ns, nap_ns) / 1e9)
        for _, call in pending:
            call.cancel()
        return {"latencies_ns": latencies_ns, "late_ns": int(median(late_ns))}


def _wait(call: FunctionCall, seconds: float) -> None:
    """Sleep until the call is done, or some time has passed."""
    try:
        call.get(seconds)
    except CallTimeout:
        pass


if __name__ == "__main__":
    main()
