"""How the batches of one function run: sealed, staged, executed, landed, delivered, or again.

::

    launch:    seal -> gather -> f(...)   -> [landing begins]      CPU: has run
    complete:  [has landed] -> outcomes are published, and the run is idle
                            -> it failed, and goes on in parts; see `retrying`
    relaunch:  a part -> gather -> f(...) -> [landing begins]
    serve:     launch and complete in one, where nothing can come between
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..contract.definition import Definition
from ..protocol import _core
from ..protocol._core import Batch, Inbox
from .batcher import Batcher, SealReason
from .delivery import Delivery
from .dying import DeviceLost
from .failures import Failures
from .retrying import Retries
from .runner import AsyncRunner, Run
from .staging.devices import Device
from .staging.staging import Staging
from .statistics import Statistics

if TYPE_CHECKING:
    from ..protocol._core import Wake
    from .staging.direct import Direct

_DEADLINE = SealReason.DEADLINE


class Executing:
    """Everything that one function's batches need to run; for the loop's thread.

    Args:
        address: for messages, ``app.function``.
        loop: makes the event loop that async functions suspend on.
        function: what is called, on one list or stack a parameter.
        direct: as of `Staging`.
        record_nbytes: room for an error record in a slot.
    """

    # What is looked at in every turn is to be found at once, whatever a subclass adds.
    __slots__ = (
        *("_clock", "_delivery", "_device", "_function", "_lands", "_resting", "_runner"),
        *(
            "_staging",
            "address",
            "batcher",
            "definition",
            "depth",
            "expects_calls",
            "failures",
            "fetches",
        ),
        *("flights", "idle", "inbox", "retries", "statistics"),
    )

    def __init__(
        self,
        definition: Definition,
        address: str,
        device: Device,
        loop: asyncio.AbstractEventLoop | None,
        *,
        function: Callable[..., Any],
        direct: Direct | None,
        record_nbytes: int,
    ) -> None:
        signature, parameters = definition.signature, definition.parameters
        module = definition.function.__module__
        self.definition = definition
        self.address = address
        self.inbox = Inbox()
        self.expects_calls = False  # a batch was completed, and since then no call has come
        self.batcher = Batcher(parameters.max_batch_size, parameters.wait_ns, definition.lockstep)
        self.statistics = Statistics()
        self.failures = Failures(address)
        self.flights: deque[Run] = deque()  # launched and not completed, oldest first
        self.retries = Retries(definition.failing, self.batcher, definition.batch_sizes)
        self._clock: tuple[_core.Watchdog, int] | None = None  # see `be_clocked`
        self._device = device
        sizes = definition.batch_sizes
        note = self.failures.note
        self._staging = Staging(
            signature,
            parameters.max_batch_size if sizes is None else sizes[-1],
            device,
            sizes=sizes,
            direct=direct,
            read_only=definition.read_only,
            address=address,
            module=module,
            record_nbytes=record_nbytes,
            note=note,
        )
        self.fetches = self._staging.fetches  # what the function returns
        self._lands = self.fetches  # something is to be done before and after delivering
        self._function = function
        self._runner: AsyncRunner | None = None
        self.depth = device.depth  # as many batches can be in flight
        if definition.is_async:
            assert loop is not None, "async functions need an event loop"
            self._runner = AsyncRunner(function, loop)
        if definition.is_async or signature.plain:
            self.depth = 1
        self._delivery = Delivery(address, signature.result, record_nbytes, note, module)
        # A function with none left cannot launch.
        self.idle = [
            Run(Batch(parameters.max_batch_size, self.statistics.phases))
            for _ in range(self.depth)
        ]
        self._resting: list[Run] = []  # those that would be idle, while a batch is in parts

    def be_clocked(self, core: _core.Watchdog, number: int) -> None:
        """Tell a watchdog when executions of ours, which it knows by a number, begin and end."""
        self._clock = core, number
        self._lands = True

    @property
    def is_busy(self) -> bool:
        """Whether a batch is in flight, be it in parts of which none runs just now."""
        return bool(self.flights or self.retries.waiting)

    def launch(self, at_ns: int) -> int:
        """Seal a batch and start it; return its size, 0 if all its calls were cancelled just now,
        or had expired by *at_ns*.

        A synchronous function on the CPU has run when this returns.
        """
        run = self._seal(at_ns)
        if run is None:
            return 0
        size = run.size
        self._execute(run)
        return size

    def _seal(self, at_ns: int) -> Run | None:
        """Take the calls of a batch into an idle run, which flies then; None without any."""
        run = self.idle.pop()
        batcher = self.batcher
        run.size = self.inbox.take(run.batch, batcher.max_batch_size, at_ns)
        if batcher.lockstep and batcher.reason is _DEADLINE:
            # Whoever was waited for in vain is not waited for again until it calls.
            self.inbox.forget_absent()
        if not run.size:
            self.idle.append(run)
            return None
        run.reason = batcher.sealed()
        self.flights.append(run)
        return run

    @property
    def runs_at_once(self) -> bool:
        """Whether a batch that is launched can be completed at once, so that `serve` does both."""
        return self._staging.only_gathers and self._runner is None and self._clock is None

    def serve(self, at_ns: int) -> tuple[int, list[Wake] | None]:
        """As `launch` and then `complete`, at half of what they cost; returns what they do.

        For a function that `runs_at_once`, and has an idle run. A batch that does not end as it
        should goes the long way from there.
        """
        run = self._seal(at_ns)
        if run is None:
            return 0, None
        size, batch = run.size, run.batch
        try:
            inputs = self._staging.gather_alone(batch)
        except BaseException as error:
            run.raised(error, "staging")
            return size, self.complete()
        try:
            value = self._function(*inputs)
        except BaseException as error:  # whatever it is, even SystemExit, the callers get it
            run.raised(error)
            return size, self.complete()
        if self.retries.active or not self._delivery.scattered(batch, value):
            run.returned(value)
            return size, self.complete()
        wakes = batch.complete()
        # The callers have their results; now what can wait.
        self.statistics.count(size, 0, run.reason)
        self.expects_calls = True
        self.flights.clear()
        self.idle.append(run)
        return size, wakes

    def relaunch(self) -> None:
        """Start the next part of a batch that failed; there must be one."""
        run = self.retries.next()
        self.flights.append(run)
        if run.batch.count:
            self._execute(run)
        else:  # nobody waits for its outcomes any more
            run.size, run.done = 0, True

    def _execute(self, run: Run) -> None:
        """Gather the inputs of a flight and call the function with them."""
        clock = self._clock
        if clock is not None:
            clock[0].enter(clock[1])
        try:
            inputs, run.size = self._staging.gather(run.batch)
        except BaseException as error:
            run.raised(error, "staging")
        else:
            try:
                if not run.size:  # none of the rows could be read
                    run.done = True
                elif self._runner is None:
                    run.value = self._function(*inputs)
                    run.done = True
                else:
                    self._runner.start(run, inputs)
            except BaseException as error:  # whatever it is, even SystemExit, the callers get it
                run.raised(error)
        lands = self.fetches and run.done
        if lands:
            self._begin_landing(run)  # which may wait for the device
        if clock is not None:
            clock[0].leave(clock[1], lands or not run.done, lands)

    def is_under_way(self) -> bool:
        """Say whether the oldest flight, whose function has run, is still on its device."""
        run = self.flights[0]
        if not self.fetches:
            return False
        if run.landing is None:
            self._begin_landing_late(run)
        try:
            return run.landing is not None and not run.landing.landed()
        except Exception as error:
            run.raised(error, "delivering")
            return False

    def complete(self) -> list[Wake] | None:
        """Publish the outcomes of the oldest flight, which must be done; return whom to wake.

        If it failed and is to go on in parts, it has no outcomes yet.
        """
        run = self.flights.popleft()
        batch = run.batch
        count, rejected = batch.count, batch.rejected
        lands = self._lands
        if lands:
            self._land(run)
        if not count:
            pass  # all rows were rejected, and have their errors
        elif run.error is None:
            try:
                if run.size != count and not self.fetches:
                    run.value = self._delivery.without_padding(run.value, count, run.size)
                self._delivery.returned(batch, run.value)
            except BaseException as error:  # an object of the user's did, when looked at
                self._delivery.raised(batch, error)
        elif self.retries.takes(run):
            self._resting += self.idle  # no other batch is launched before this one is over
            self.idle.clear()
            run.value = run.error = run.landing = None
            run.done = run.watched = False
            if lands:
                self._be_done()
            return None
        else:
            self._delivery.raised(batch, run.error)
        wakes = batch.complete()
        # The callers have their results; now what can wait.
        self.statistics.count(count, rejected, run.reason)
        if self.failures.noted:
            self.failures.settle()
        self.expects_calls = True
        if self.retries.active:
            self._delivered(run, count)
        else:
            self.idle.append(run)
        run.value = run.error = run.landing = None
        run.done = run.watched = False
        if lands:
            self._be_done()
        return wakes

    def _delivered(self, run: Run, count: int) -> None:
        """Let a run be idle again, or rest, or wait for its next part."""
        if self.retries.delivered(run, count):
            self._resting.append(run)
        if not self.retries.in_pieces:
            self.idle += self._resting
            self._resting.clear()

    def _begin_landing(self, run: Run) -> None:
        """Start copying to the host what the function returned; note when all that is over."""
        try:
            if run.error is None and run.size:
                count = run.batch.count
                value = self._delivery.without_padding(run.value, count, run.size)
                run.value, run.landing = self._staging.fetch(value, count)
        except BaseException as error:  # an object of the user's did, when looked at
            run.raised(error, "delivering")
        try:
            if run.landing is None:
                run.landing = self._device.landing()
        except Exception as error:
            run.raised(error, "delivering")

    def _begin_landing_late(self, run: Run) -> None:
        """Begin the landing of an async function, which suspended."""
        clock = self._clock
        if clock is not None:
            clock[0].enter(clock[1])
        self._begin_landing(run)
        if clock is not None:
            clock[0].leave(clock[1], True, True)

    def _land(self, run: Run) -> None:
        """Wait until all is over that the batch has started on the device, come what may."""
        if self.fetches:
            self._wait_for_landing(run)
        if self._clock is not None:  # objects of the user's are looked at now, and may not return
            self._clock[0].enter(self._clock[1])

    def _be_done(self) -> None:
        """Say that a batch has its outcomes, or will be run again."""
        if self._clock is not None:
            self._clock[0].done(self._clock[1], bool(self.flights))

    def _wait_for_landing(self, run: Run) -> None:
        if run.landing is None:
            self._begin_landing_late(run)
        try:
            if run.landing is not None:
                run.landing.wait()
        except Exception as error:
            run.raised(error, "delivering")
        if run.error is not None and self._device.is_lost(run.error):
            raise DeviceLost.because(run.error, self.address) from run.error
