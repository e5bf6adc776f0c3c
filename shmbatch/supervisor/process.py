"""The supervisor's loop: it forks executors, and decides what each event means for the next one.

::

    shmbatch start --restart
      supervisor               stays as it is: no thread, nothing heavy imported
        |- executor            forked before the user's file is imported, and again when it dies
        `- executor            the next one, while it loads at a reload; then the one before it

It ends when an executor ends with status 0, as it does when it was told to stop; when it is told
to stop itself; and when it gives up, of which its notice has the cause.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol import leftovers
from ..protocol.clock import now_ns
from ..protocol.keeping import NameKeeper
from ..protocol.orders import Orders
from ..protocol.supervision import STOP, STOP_NOW, Notice, Supervisor
from .backoff import STARTS_MAX, Backoff
from .executor import Executor, fork
from .reload import Reload
from .signals import STOPPING, Signals

log = logging.getLogger("shmbatch.supervisor")

# After these one that has been told to is killed: while it loads, and where it is to end at once.
_LOADING_NS = 3_000_000_000
_ENDING_NS = 1_000_000_000
_STDOUT, _STDERR = 1, 2


def supervise(
    *, lifeline: int | None, notify: Callable[..., None], forked: Callable[[], None]
) -> Orders | int:
    """Fork an executor, and another one whenever it dies; call it in a process without threads.

    Returns several times: in each executor with its end of the line to the supervisor, and in the
    end in the supervisor, with its exit status.

    SIGTERM and SIGINT have the executor drain, a second one has it end at once. SIGHUP reloads; if
    it says that the terminal is gone, it drains.

    Args:
        lifeline: a pidfd, or the end of a pipe: at the death of that process, or when the other
            end closes, all drain; None for no such process.
        notify: tells a service manager; see `notifying.notifier`.
        forked: called in the supervisor once it has forked the first executor.
    """
    return _Supervisor(lifeline, notify).run(forked)


def _as_shells_do(status: int) -> int:
    return status if status >= 0 else 128 - status


class _Supervisor:
    def __init__(self, lifeline: int | None, notify: Callable[..., None]) -> None:
        self._lifeline = lifeline
        self._notify = notify
        self._signals = Signals()
        self._pid = os.getpid()
        self._pidfd = os.pidfd_open(self._pid)
        self._notice = Notice()
        self._backoff = Backoff()
        self._keeper: NameKeeper | None = None
        self._name: str | None = None  # that the first one claimed
        self._called = "the executor"  # in messages
        self._current: Executor | None = None  # the one that has the name
        self._successor: Executor | None = None  # the one that loads to take it over
        self._old: list[Executor] = []  # replaced ones that drain
        self._yielded: tuple[int, int] | None = None  # the socket that a successor is to replace
        self._fork_ns: int | None = now_ns()  # when to fork the next one
        self._has_served = self._is_announced = False
        self._reload = Reload()
        self._died_ns = 0  # when the last one that had the name did
        self._is_stopping = self._is_hurrying = False
        self._is_told = False  # by a signal to stop; the next one is to hurry
        self._kill_ns: int | None = None
        self._status: int | None = None  # to end with, as soon as nobody is left

    def run(self, forked: Callable[[], None]) -> Orders | int:
        while True:
            if self._fork_ns is not None and self._fork_ns <= now_ns():
                self._fork_ns = None
                orders = self._fork()
                if orders is not None:
                    return orders
                forked()
            if self._reload.is_wanted and self._may_reload():
                orders = self._fork(beside=True)
                if orders is not None:
                    return orders
            if self._status is not None and not self._executors():
                break
            self._wait()
        self._reload.give_up(f"{self._called} has stopped")
        if self._keeper is not None:
            self._keeper.close()
        return self._status

    def _executors(self) -> list[Executor]:
        return [each for each in (self._current, self._successor, *self._old) if each is not None]

    # ---- forking -------------------------------------------------------------------------

    def _fork(self, beside: bool = False) -> Orders | None:
        """Fork an executor; return its orders in it, None in this process."""
        if beside:
            log.info("%s reloads", self._called)
            self._notify(RELOADING=1, MONOTONIC_USEC=now_ns() // 1000, STATUS="reloading")
            self._reload.begin()
        try:
            forked = fork(self._signals)
        except OSError as error:
            self._not_forked(error, beside)
            return None
        if isinstance(forked, socket.socket):
            self._become_executor()
            supervisor = Supervisor(self._pidfd, self._notice.fd)
            return Orders(forked, supervisor, keeper=self._pid, name=self._name, succeeds=beside)
        if beside:
            self._successor = forked
        else:
            self._current = forked
        return None

    def _become_executor(self) -> None:
        """In a forked child: leave nothing of the supervisor but its pidfd and its notice."""
        self._notice.unmap()
        if self._keeper is not None:
            self._keeper.close()
        self._reload.close()
        for each in self._executors():
            each.close()
        if self._lifeline is not None:
            os.close(self._lifeline)

    def _not_forked(self, error: OSError, beside: bool) -> None:
        failure = f"cannot fork: {error.strerror}; see the limits of this process, `ulimit -a`"
        if beside:
            self._not_reloaded({"error": "ConfigError", "message": failure})
        elif self._has_served:
            self._back_off(None, failure)
        else:
            log.error("the executor: %s", failure)
            self._end(1)

    # ---- events --------------------------------------------------------------------------

    def _wait(self) -> None:
        """Wait for something to happen, and do what it means."""
        poll = select.poll()
        owners = {fd: each for each in self._executors() for fd in each.fds()}
        for fd in (self._signals.fd, *owners):
            poll.register(fd, select.POLLIN)
        if self._lifeline is not None:
            poll.register(self._lifeline, select.POLLIN)
        timers = [at_ns for at_ns in (self._fork_ns, self._kill_ns) if at_ns is not None]
        patience_ms = max(0, min(timers) - now_ns()) / 1e6 if timers else None
        found = [fd for fd, _ in poll.poll(patience_ms)]
        if self._signals.fd in found:
            for number in self._signals.arrived():
                if self._signals.says_reload(number):
                    self._reload.ask()
                elif number in (STOP, STOP_NOW):
                    self._stop(None, now=number == STOP_NOW)
                else:
                    self._stop(number)
        if self._lifeline in found:
            log.info("the process that started this executor is gone")
            os.close(self._lifeline)
            self._lifeline = None
            self._stop(None)
        for executor in {id(owners[fd]): owners[fd] for fd in found if fd in owners}.values():
            for message, fds in executor.said():
                self._heard(executor, message, fds)
            if executor.pidfd in found:
                self._ended(executor)
        if self._kill_ns is not None and self._kill_ns <= now_ns():
            self._kill_ns = None
            for each in self._executors():
                if each.ready_ns is None or self._is_hurrying:
                    each.kill()

    def _stop(self, number: int | None, *, now: bool = False) -> None:
        """Have all executors drain; with *now*, or at the second signal to, end at once."""
        hurry = now or (self._is_told and number in STOPPING)
        self._is_told = self._is_told or number in STOPPING
        if self._is_stopping and (self._is_hurrying or not hurry):
            return
        self._is_stopping = True
        self._status = self._status or 0
        self._fork_ns = None
        self._kill_ns = now_ns() + (_ENDING_NS if hurry else _LOADING_NS)
        if hurry:
            self._is_hurrying = True
            log.warning("%s stops now", self._called)
            if number is not None:
                self._status = 128 + number
        for each in self._executors():
            if each is self._successor and not each.is_to_take:
                each.kill()  # it has no calls
            else:
                each.stop(hurry)

    def _heard(self, sender: Executor, message: dict[str, Any], fds: Sequence[int]) -> None:
        kind, state = message["kind"], message.get("state")
        if kind == "reload" and fds:
            self._reload.ask(fds[0])
            return
        if kind == "log" and fds:
            for standard in (_STDOUT, _STDERR):
                os.dup2(fds[0], standard)
        for fd in fds:
            os.close(fd)
        if kind == "claimed":
            self._called = str(message.get("called"))
            self._keep(str(message.get("name")))
            sender.order("kept")
        elif kind == "notify" and isinstance(state, dict):
            sender.service = str(state.get("STATUS"))
            if sender is self._current:
                if self._is_announced:
                    state.pop("READY", None)  # it is the service that is ready, once
                self._is_announced = self._is_announced or "READY" in state
                self._notify(**state)
        elif kind == "failed":
            sender.failure = {each: str(message.get(each)) for each in ("error", "message")}
        elif kind == "ready":
            self._ready(sender)
        elif kind == "draining":
            # Somebody has told it, or the one before it, to stop.
            self._stop(None, now=bool(message.get("now")))
        elif kind == "yielded" and sender is self._current:
            # If there is no successor any more, it is to have its name back.
            self._let_take(self._successor if self._successor is not None else sender)
        elif kind == "taken" and sender is self._successor:
            self._taken(sender, int(message["at_ns"]))
        elif kind == "released":
            self._reload.released(sender, int(message["at_ns"]))

    def _keep(self, name: str) -> None:
        self._name = name
        if self._keeper is None or not self._keeper.holds():
            if self._keeper is not None:
                self._keeper.close()
                self._keeper = None
            try:
                self._keeper = NameKeeper(name)
            except OSError as error:
                log.warning("cannot keep the name %s: %s", name, error)

    def _ready(self, sender: Executor) -> None:
        sender.ready_ns = now_ns()
        if sender is not self._successor:
            self._has_served = True
            if self._is_stopping:
                sender.stop(hurry=False)  # it was ready before it could be told to
        elif self._is_stopping:
            sender.kill()  # likewise, and it has no calls
        elif self._current is not None:
            self._current.order("yield")
        else:  # it has died meanwhile
            self._let_take(sender)

    def _ended(self, executor: Executor) -> None:
        served_ns = executor.served_ns()
        status = executor.bury()
        fate = executor.fate(status)
        leftovers.remove(str(executor.pid))
        if executor in self._old:
            self._old.remove(executor)
            self._reload.released(executor, now_ns())
        elif executor is self._successor:
            self._successor = None
            self._not_reloaded(executor.failure or {"error": "ExecutorGone", "message": fate})
            if self._current is not None and executor.is_to_take:
                self._give_back(self._current, served_ns, fate)
            elif self._current is None and not self._is_ending():
                self._back_off(None, fate)
        else:
            self._current = None
            self._succeed(executor, served_ns, status)

    def _succeed(self, executor: Executor, served_ns: int | None, status: int) -> None:
        """Decide what follows the one that had the name and has ended."""
        if self._is_stopping:
            # Else it was cut short by us.
            if not self._is_hurrying and (served_ns is not None or not self._has_served):
                self._status = self._status or _as_shells_do(status)
        elif status == 0:
            self._end(status)
        elif self._successor is not None:
            log.warning("%s %s; the next one loads", self._called, executor.fate(status))
            self._died_ns = now_ns()
            if self._successor.ready_ns is not None and not self._successor.is_to_take:
                self._let_take(self._successor)
        elif self._has_served:
            self._back_off(served_ns, executor.fate(status))
        else:  # as without a supervisor
            if status < 0:
                log.error("the executor %s", executor.fate(status))
            self._end(status)

    def _end(self, status: int) -> None:
        """The executor has come to its end; no other one is started."""
        self._status = _as_shells_do(status)
        if self._successor is not None:
            self._successor.kill()

    def _back_off(self, served_ns: int | None, fate: str) -> None:
        pause_ns = self._backoff.ended(served_ns)
        if pause_ns is None:
            cause = f"did not start {STARTS_MAX} times in a row: {fate}"
            log.error("%s is given up: it %s", self._called, cause)
            self._notify(STATUS=f"given up: {fate}")
            self._notice.write(f"its supervisor gave up: {cause}")
            self._status = 1
            return
        wait = f"in {pause_ns / 1e9:g} s" if pause_ns else "now"
        log.warning("%s %s; it is started again %s", self._called, fate, wait)
        self._notify(STATUS=f"{fate}; is started again {wait}")
        self._fork_ns = now_ns() + pause_ns

    # ---- reload --------------------------------------------------------------------------

    def _may_reload(self) -> bool:
        """Say whether there is one to be replaced, and nothing else is going on."""
        current = self._current
        ready = current is not None and current.ready_ns is not None
        return ready and self._successor is None and self._status is None

    def _is_ending(self) -> bool:
        return self._is_stopping or self._status is not None

    def _let_take(self, executor: Executor) -> None:
        if self._keeper is not None:
            self._yielded = self._keeper.socket()
        executor.is_to_take = True
        executor.order("take")

    def _give_back(self, current: Executor, served_ns: int | None, fate: str) -> None:
        """Have *current* have its name again: its successor has died before it said "taken"."""
        if self._keeper is None or self._keeper.socket() == self._yielded:
            self._let_take(current)
            return
        if self._is_ending():
            return  # it drains, and nobody needs to find it
        # The socket there is the dead one's, and nobody can connect to *current* any more.
        self._current = None
        self._old.append(current)
        current.order("replaced")
        self._back_off(served_ns, fate)

    def _taken(self, successor: Executor, at_ns: int) -> None:
        """The successor has the name: what it replaces drains."""
        successor.taken_ns = at_ns
        replaced, self._current, self._successor = self._current, successor, None
        self._notify(READY=1, STATUS=successor.service or "reloaded")
        if replaced is None:
            self._reload.succeed(successor, self._died_ns)
            return
        self._old.append(replaced)
        self._reload.taken(successor, replaced)
        replaced.order("replaced")

    def _not_reloaded(self, failure: dict[str, str]) -> None:
        if self._keeper is not None:
            self._keeper.clear()
        if self._is_ending():
            return  # which is why; who waits is told in the end
        log.error("%s is not reloaded: %s", self._called, failure["message"])
        if self._current is not None:
            self._notify(READY=1, STATUS=f"not reloaded: {failure['message']}")
        self._reload.fail(failure["error"], failure["message"])
