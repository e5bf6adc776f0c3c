"""The executor process from its name to its end: claim, listen, load, serve, drain, clean up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from ..contract.definition import Definition
from ..contract.device import device_name
from ..protocol import _core, ownership, snapshot
from ..protocol.access import Access
from ..protocol.orders import Orders
from ..protocol.spinning import wait_mode
from ..protocol.terminal import has_terminal
from ..protocol.transport import executor_transport
from .control import Control
from .dying import DeviceLost, die
from .instances import Instances, needs_loop
from .lander import Lander
from .loop import Loop
from .obeying import Obedience
from .poller import Poller
from .room import Quotas, Room
from .served import ServedFunction
from .staging.choosing import devices_for
from .tenure import Tenure
from .turns import share_instances
from .watchdog import watchdog_over

log = logging.getLogger("shmbatch.executor")

_TIMER_SLACK_NS = 1_000  # the default, 50 us, would make every deadline that late


def serve(
    name: str,
    load: Callable[[], Sequence[Definition]],
    *,
    transport: str = "linux",
    device: str | None = None,
    wait: str | None = None,
    ready: Callable[[], None] = lambda: None,
    supervisor_fd: int | None = None,
    orders: Orders | None = None,
    file: Path | None = None,
    called: str | None = None,
    notify: Callable[..., None] = lambda **state: None,
    access: Access | None = None,
    quotas: Quotas | None = None,
) -> None:
    """Serve functions under *name* until told to stop. Call it in the main thread.

    SIGTERM, SIGINT and ``shmbatch stop`` drain; a second signal ends the process at once. SIGHUP
    drains where there is a terminal that can hang up, and is ignored where there is none.

    Args:
        load: returns what to serve; called once the name is ours, so that a refused executor
            loads nothing.
        device: where functions on tensors run; see `device_name`.
        ready: called when producers can attach.
        supervisor_fd: as of `Control`.
        orders: of the supervisor that has forked this process; None if there is none.
        file: where the functions are from, for others to read.
        called: what messages call the app, where *name* is private.
        notify: tells a service manager; see `notifying.notifier`.
        access: who is let in beside this user; not with transport ``posix``.
        quotas: what producers may have; by default what fits the machine.

    Raises:
        NameTaken: a live executor has the name.
        ConfigError: name, directory, transport, device or wait is wrong.
    """
    mode = wait_mode(wait)
    device = device_name(device)
    access, quotas = access or Access(), quotas or Quotas()
    with ExitStack() as stack:
        signals = stack.enter_context(_Signals(supervised=orders is not None))
        tenure = stack.enter_context(Tenure(name, file, access, orders, called))
        room = Room(quotas, name)
        room.widen_descriptor_table()  # before anybody waits for it
        listener = stack.enter_context(tenure.listen())
        notify(STATUS=f"loading {file or name}")
        definitions = load()
        events = None
        if any(map(needs_loop, definitions)):
            events = asyncio.new_event_loop()
            stack.callback(events.close)
        instances = stack.enter_context(Instances(events))
        definitions = instances.bound(definitions)
        half = executor_transport(transport)
        stack.callback(half.close)
        poller = Poller(half, mode)
        stack.callback(poller.close)
        functions = [
            ServedFunction(
                *(each, f"{called or name}.{each.name}", chosen, events, half.max_capacity),
                producer_nbytes=quotas.producer_nbytes,
            )
            for each, chosen in zip(definitions, devices_for(definitions, device), strict=True)
        ]
        share_instances(functions)
        for function in functions:
            stack.callback(function.close)
            function.warn_of_few_slots()

        def drain() -> None:
            say_that_it("drains")
            tenure.note(ownership.DRAINING)
            notify(STOPPING=1, STATUS="draining")
            if orders is not None:
                orders.say("draining")
            control.refuse()
            loop.drain()

        def be_replaced() -> None:
            control.refuse(_core.REPLACED)
            loop.post(partial(say_that_it, "is replaced and drains"))
            loop.post(partial(loop.drain, _core.REPLACED))

        def say_that_it(drains: str) -> None:
            log.info(
                "%s %s: %d calls waiting, %d in flight",
                name,
                drains,
                sum(each.inbox.pending() for each in loop.functions),
                sum(each.inbox.running for each in loop.functions),
            )

        def abort(status: int) -> None:
            half.close()
            tenure.close()
            os._exit(status)

        def stop(now: bool) -> None:
            if now:
                lost = sum(each.inbox.pending() + each.inbox.running for each in loop.functions)
                log.warning("%s stops now, %d calls lost", name, lost)
                if orders is not None:
                    orders.say("draining", now=True)
                abort(0)  # as it was asked to: a service manager is not to start it again
            loop.post(drain)

        watch = None
        on_device = [each for each in functions if each.fetches]
        if on_device:
            lander = Lander(poller.wake, on_device[0].adopt_thread)  # all are on the same one
            stack.callback(lander.close)
            watch = lander.watch
        loop = Loop(
            functions, poller, events, lambda connection: control.disconnect(connection), watch
        )
        obedience = None
        if orders is not None:
            obedience = Obedience(
                orders,
                tenure,
                drain=lambda: loop.post(drain),
                end=abort,
                replaced=be_replaced,
            )
        control = Control(
            listener,
            name,
            {each.definition.name: each for each in functions},
            half,
            loop,
            poller,
            stop,
            supervisor_fd,
            obedience=obedience,
            access=access,
            room=room,
        )
        stack.callback(control.close)
        end_with = partial(die, name, hang_up=control.hang_up, notify=notify, end=abort)
        watchdog = watchdog_over(functions, listener, end_with)
        if watchdog is not None:
            stack.callback(watchdog.close)
        try:
            for function in functions:
                function.warm_up()
            _core.set_timer_slack(_TIMER_SLACK_NS)
            # A full collection over everything that torch brings takes 100 ms; none of it is
            # garbage.
            gc.collect()
            gc.freeze()
            control.start()
            signals.first, signals.second = partial(loop.post, drain), abort
            served = ", ".join(each.definition.name for each in functions)
            log.info("%s serves %s", name, served)
            if orders is not None:
                orders.say("ready")  # first: who hears that we serve may kill us for it
            tenure.note(ownership.SERVING)
            notify(READY=1, STATUS=f"serving {served}")
            ready()
            loop.run()
        except DeviceLost as lost:
            end_with(lost)
    totals = [snapshot.totals(each.counts(0)) for each in loop.functions]
    log.info(
        "%s has stopped: %d calls done, %d of them failed, %d batches",
        name,
        sum(each.done for each in totals),
        sum(each.failed for each in totals),
        sum(each.batches for each in totals),
    )


class _Signals:
    """SIGTERM and SIGINT: end at once while loading; then drain, and at the second end at once.

    SIGHUP says that the terminal is gone. Shell and kernel may both send it, so a second one means
    no more than the first; and without a terminal it means something that we do not do, such as
    to open log files anew.

    Where there is a supervisor, SIGHUP is for that. A Ctrl-C, or a signal to a control group, goes
    to both, and the supervisor sends one more to who is loading: which must not disturb the end.
    """

    def __init__(self, *, supervised: bool) -> None:
        self._supervised = supervised
        self.first: Callable[[], None] | None = None
        self.second: Callable[[int], None] | None = None
        self._seen = self._interrupted = False
        self._pid = os.getpid()
        self._terminal = has_terminal()
        self._replaced: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        numbers = [signal.SIGTERM, signal.SIGINT]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # as a thread may have started us
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # and not ignored, as by nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._replaced[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that a user's function forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if number == signal.SIGHUP and (self._supervised or not self._terminal):
            return
        if self.first is None or self.second is None:
            if self._supervised and self._interrupted:
                return
            self._interrupted = True
            raise KeyboardInterrupt
        if number != signal.SIGHUP:
            if self._seen:
                self.second(128 + number)
            self._seen = True
        self.first()
