"""The handle a producer calls: an address, options, and the verbs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from types import EllipsisType
from typing import Any

from ..contract.batching import BatchParameters, OtherBatching, other_batching
from ..contract.signature import Signature
from ..errors import ConfigError, ExecutorNotFound
from ..protocol import names
from ..protocol._core import ASYNC, PENDING, SPAWNED, SUBMIT_FULL, Verb
from ..protocol.clock import deadline_ns as deadline_after
from . import mapping
from .attended import Attended
from .call import FunctionCall
from .connection import Connection, Forked, Replaced
from .handshake import ANSWER_S, DECORATED, answer_within
from .limits import UNLIMITED, Limits, check, limits_from_now, unserved
from .patience import NotInTime
from .pool import connection_to
from .reserving import Reservation
from .verbs import verb

# Returns what the last argument returns, a connection, when somebody serves an address; sees to it
# that somebody does, within so many seconds. Picklable.
Starter = Callable[[names.Address, float | None, Callable[[], Connection]], Connection]

_serving: set[str] = set()  # names that this process is the executor of


def serving(name: str) -> None:
    """Say that this process serves *name*: its functions must not wait for themselves."""
    _serving.add(name)


class Function:
    """A batched function served by an executor.

    Connects on first use, once for each process; picklable; safe to use from several threads
    and event loops; after a fork the child connects anew. Each verb has an asyncio twin under
    ``.aio``.

    Args:
        address: where it is served.
        local: the plain function on lists, where this process has it.
        signature: what this process believes its signature is; None to be told on connecting.
        timeout: seconds for a slot and a result together; None for ever.
        deadline_ms: milliseconds until a call must have been launched; None for no deadline.
        arrays: ``"numpy"`` to get tensors as arrays, without importing torch.
        wait: ``"auto"``, ``"spin"`` or ``"park"``; by default what SHMBATCH_WAIT says.
        decorated: how it batches, where this process knows.
        batching: which of its queues is meant; see `with_batching`.
        starter: connects, and starts an executor before if need be.
    """

    def __init__(
        self,
        address: names.Address,
        *,
        local: Callable[..., Any] | None = None,
        signature: Signature | None = None,
        timeout: float | None = None,
        deadline_ms: float | None = None,
        arrays: str = "native",
        wait: str | None = None,
        decorated: BatchParameters | None = None,
        batching: OtherBatching = DECORATED,
        starter: Starter | None = None,
    ) -> None:
        check(timeout, deadline_ms)
        self.address = address
        self._plain = local
        self._signature = signature
        self._timeout = timeout
        self._deadline_ms = deadline_ms
        self._limited = timeout is not None or deadline_ms is not None
        self._arrays = arrays
        self._wait = wait
        self._decorated = decorated
        self._batching = batching
        self._starter = starter
        self._connection: Connection | None = None
        # Found here, and not made anew for each call; they do most calls by themselves.
        self.remote = Verb(*Function.remote.bound(self))
        spawn, twin = Function.spawn.bound(self)
        self.spawn = Verb(spawn, twin, FunctionCall, UNLIMITED)

    def live(self) -> Connection | None:
        """Return the connection that calls are made over; None if there is none to be used."""
        connection = self._connection
        if connection is None or connection.dead or connection.ring.forked:
            return None
        return connection

    def connect(
        self,
        timeout: float | None = 0,
        *,
        answer_s: float | None = None,
        served: bool = False,
        limits: Limits | None = None,
        once: bool = False,
    ) -> Connection:
        """Return a live connection, waiting up to *timeout* seconds for an executor.

        Where an executor has died and another one is about to come, calls may be made at once,
        and wait for it, or this waits, as long as a call may with *limits*, by default with those
        of one made now; unless the connection is to be *served* in time.

        Args:
            answer_s: what an executor that is there is given to answer, if that is longer; by
                default up to ten seconds, as long as a call may wait, but a second at least.
            once: raise where else this would wait as long as a call may.

        Nothing of this bounds the start of an instance, where this call has to make it.

        Raises:
            ExecutorNotFound, HandshakeError: as `shmbatch.connect`.
            CallTimeout, DeadlineExceeded: *limits* passed while this waited for another one.
        """
        connection = self.live()
        if connection is None:
            if self._is_served_here():
                raise ConfigError(
                    f"'{self.address}' is called inside its own executor, which would wait for "
                    f"itself; call .local(...) with lists there"
                )
            deadline = deadline_after(timeout)
            limits = limits or self._limits_from_now()
            until_ns = limits.next_ns
            patience_s = ANSWER_S if served else answer_within(until_ns)
            if answer_s is not None:
                patience_s = answer_s
            if once:
                until_ns = 0
            elif served:
                until_ns = deadline

            def connect() -> Connection:
                return connection_to(
                    self.address,
                    self._signature,
                    deadline,
                    arrays=self._arrays,
                    wait=self._wait,
                    batching=self._batching,
                    answer_s=patience_s,
                    kept_ns=until_ns,
                    served=served,
                )

            try:
                if self._starter is None:
                    connection = connect()
                else:
                    connection = self._starter(self.address, timeout, connect)
            except NotInTime as error:
                if served or once:
                    raise ExecutorNotFound(str(error)) from None
                raise unserved(self.address, limits) from None
            self._connection = connection
            connection.handles.add(self)
            self._follow(connection)
        return connection

    def _follow(self, connection: Connection) -> None:
        """Let the core make calls over *connection* by itself."""
        if not self._limited:
            self.spawn.follow(connection)
        if self._deadline_ms is None:  # last: `_submit` looks at this one
            self.remote.follow(connection, self._timeout)
        if self._connection is not connection:  # another thread has let go of it meanwhile
            self.remote.follow(None)
            self.spawn.follow(None)

    def _is_served_here(self) -> bool:
        address = self.address
        if not address.instance and address.app in _serving:
            return True  # whatever the name means in an environment that we have inherited
        return address.served_as() in _serving

    def forget(self, connection: Attended) -> None:
        """Let go of a connection; the next call looks the name up and connects anew."""
        if self._connection is connection:
            self._connection = None  # first: `_follow` looks at it last
            self.remote.follow(None)
            self.spawn.follow(None)

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself, on lists or stacks, here and now, without batching."""
        if self._plain is None:
            raise ConfigError(
                f"this process has the address '{self.address}' but not the function; "
                f"import it from its file to call it locally"
            )
        return self._plain(*args, **kwargs)

    def with_options(
        self,
        *,
        timeout: float | EllipsisType | None = ...,
        deadline_ms: float | EllipsisType | None = ...,
    ) -> Function:
        """Return a handle of the same function with other options; one not given stays.

        Args:
            timeout: seconds that a caller waits for a slot and for the result; then it gets
                `RingFull` or `CallTimeout`, and the call is abandoned: not launched it never
                runs, launched its result is dropped. None waits for ever. A call that has to
                connect first waits no longer for that either, but an executor that is there is
                given a second to answer.
            deadline_ms: milliseconds from the call until it must have been launched; else it
                never runs, and its caller gets `DeadlineExceeded`, then and not later. Nothing
                happens to a call that was launched in time. None for no deadline.

        Raises:
            ConfigError: an option is wrong.
        """
        return self._with(
            timeout=self._timeout if isinstance(timeout, EllipsisType) else timeout,
            deadline_ms=(
                self._deadline_ms if isinstance(deadline_ms, EllipsisType) else deadline_ms
            ),
        )

    def with_batching(
        self, *, max_batch_size: int | None = None, wait_ms: float | None = None
    ) -> Function:
        """Return a handle of the same function with a queue of its own in the same executor.

        Calls of this handle, and of all with the same parameters, batch with each other and with
        no others. A queue is made when it is first used, and stays; an executor makes at most 16
        for a function.

        Args:
            max_batch_size: at most the decorated one; None for that.
            wait_ms: as of `batched`; None for the decorated one.

        Raises:
            ConfigError: an argument is wrong. Where this process does not know yet how the
                function is decorated, the first call raises `HandshakeError` instead.
        """
        batching = other_batching(max_batch_size, wait_ms)
        if self._decorated is not None:
            batching.instead_of(self._decorated, str(self.address))
        return self._with(batching=batching)

    def _with(self, **options: Any) -> Function:
        return Function(self.address, **(self._options() | {"local": self._plain} | options))

    def _options(self) -> dict[str, Any]:
        """Everything that a copy in another process has as well."""
        return {
            "signature": self._signature,
            "timeout": self._timeout,
            "deadline_ms": self._deadline_ms,
            "arrays": self._arrays,
            "wait": self._wait,
            "decorated": self._decorated,
            "batching": self._batching,
            "starter": self._starter,
        }

    # ---- one call ------------------------------------------------------------------------

    async def _remote_aio(self, *args: Any, **kwargs: Any) -> Any:
        limits = self._limits_from_now()
        connection, ticket = await self._submit_aio(args, kwargs, ASYNC, limits)
        try:
            while (outcome := connection.slots.entrance.poll(ticket, 0)) is PENDING:
                if not await connection.listening().any_outcome([ticket], limits.next_ns):
                    limits = connection.lapse(ticket, limits)
            return connection.wait(ticket, outcome, limits)
        except BaseException:
            outcome = None  # it may be what holds the error, whose traceback holds this frame
            connection.abandon(ticket)
            raise

    @verb(_remote_aio)
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Send one input, wait, and return its own result.

        Cost: one copy in and one out; no system call while caller and executor are awake.

        Raises:
            InputError: a value does not fit; nothing was sent.
            RingFull, CallTimeout: the handle's timeout passed before there was a slot, or a
                result; the call is abandoned.
            DeadlineExceeded: the handle's deadline passed before it was launched; it never runs.
            ExecutorNotFound, ExecutorClosed, ExecutorGone: there is nobody to run it.
            Exception: what the function raised, with the executor's traceback in its notes.
        """
        if self.live() is None:
            self.connect()  # how long that takes, and what it may start, is not the call's time
        limits = self._limits_from_now()
        connection, ticket = self._submit(args, kwargs, 0, limits)
        try:
            outcome = connection.slots.entrance.poll(ticket, connection.spinning.spin_ns)
            return connection.wait(ticket, outcome, limits)
        except BaseException:
            outcome = None  # as in `_remote_aio`
            connection.abandon(ticket)
            raise

    async def _spawn_aio(self, *args: Any, **kwargs: Any) -> FunctionCall:
        limits = self._limits_from_now()
        connection, ticket = await self._submit_aio(args, kwargs, ASYNC | SPAWNED, limits)
        return FunctionCall(connection, ticket, limits)

    @verb(_spawn_aio)
    def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        """Send one input and return at once; waits only for a free slot.

        Raises:
            as `remote`, but for what happens to the call itself, which `FunctionCall.get` raises.
        """
        if self.live() is None:
            self.connect()  # how long that takes, and what it may start, is not the call's time
        limits = self._limits_from_now()
        connection, ticket = self._submit(args, kwargs, SPAWNED, limits)
        return FunctionCall(connection, ticket, limits)

    def reserve(self) -> Reservation:
        """Return a context manager that gives a slot, into which one input is written in place.

        ::

            with detect.reserve() as slot:
                camera.read_into(slot["frame"])  # a writable array in shared memory
                slot["threshold"] = 0.5
                boxes = slot.remote()  # or call = slot.spawn()

        Entering it waits for a slot, and raises, as a call does; leaving it without a call gives
        the slot back. Half of a connection's slots at most may be reserved or borrowed at a time,
        so that nobody waits for slots that his own thread holds.

        Cost: no copy of arrays of fixed shape; some microseconds more than `remote` without one.

        Raises:
            RingFull: the handle's timeout passed before there was a slot; or, at once, half of
                the slots are reserved or borrowed.
            as `remote`, else.
        """
        return Reservation(self)

    def _limits_from_now(self) -> Limits:
        if not self._limited:
            return UNLIMITED
        return limits_from_now(self._timeout, self._deadline_ms)

    def _submit(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], flags: int, limits: Limits
    ) -> tuple[Connection, int]:
        """Submit one call; connect before if need be, and wait for a slot."""
        while True:
            connection = self.live() or self.connect(limits=limits)
            if self.remote.connection is not connection and self._deadline_ms is None:
                self._follow(connection)  # it was interrupted before it could
            values = args
            if kwargs:  # anew: the parameters of another executor may have another order
                values = connection.signature.bind(args, kwargs, str(self.address))
            try:
                return connection, connection.submit(values, flags, limits)
            except Forked:
                continue
            except Replaced:
                self.forget(connection)

    async def _submit_aio(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        flags: int,
        limits: Limits,
    ) -> tuple[Connection, int]:
        while True:
            connection = self.live()
            if connection is None:
                from .arriving import connected  # which needs asyncio

                connection = await connected(self, limits)
            values = connection.signature.bind(args, kwargs, str(self.address))
            try:
                while True:
                    ticket = connection.slots.entrance.submit(values, flags, limits.deadline_ns)
                    if ticket == SUBMIT_FULL:
                        ticket = await connection.listening().submit(values, flags, limits)
                    if ticket >= 0:
                        return connection, ticket
                    values = connection.refusal(ticket, values)
            except Forked:
                continue
            except Replaced:
                self.forget(connection)

    # ---- many calls ----------------------------------------------------------------------

    def _map_aio(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        order_outputs: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[Any]:
        inputs = mapping.zip_aio(iterables)
        results = mapping.run_aio(self, inputs, order_outputs, return_exceptions)
        return self._shown_aio(results, iterables) if progress else results

    @verb(_map_aio)
    def map(
        self,
        *iterables: Iterable[Any],
        order_outputs: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Yield the result of each input, keeping a batch or two of calls in flight.

        Takes one iterable a parameter, read lazily, until the shortest ends. Results come in the
        order of the inputs, or with ``order_outputs=False`` as they are done. The first failed
        call raises, unless ``return_exceptions``: then exceptions are yielded in their places.
        Leaving the iterator early cancels what is in flight. With ``progress``, which needs the
        extra ``cli``, a bar on standard error says how many results have been yielded.

        Raises:
            ConfigError: *progress* is asked for, and rich is not installed.
        """
        inputs = zip(*iterables, strict=False)
        results = mapping.run(self, inputs, order_outputs, return_exceptions)
        return self._shown(results, iterables) if progress else results

    def _starmap_aio(
        self,
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> AsyncIterator[Any]:
        inputs = mapping.tuples_aio(iterable)
        results = mapping.run_aio(self, inputs, order_outputs, return_exceptions)
        return self._shown_aio(results, (iterable,)) if progress else results

    @verb(_starmap_aio)
    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
        progress: bool = False,
    ) -> Iterator[Any]:
        """As `map`, with one tuple of arguments an input."""
        results = mapping.run(self, map(tuple, iterable), order_outputs, return_exceptions)
        return self._shown(results, (iterable,)) if progress else results

    async def _for_each_aio(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        ignore_exceptions: bool = False,
        progress: bool = False,
    ) -> None:
        inputs = mapping.zip_aio(iterables)
        results = mapping.run_aio(self, inputs, False, ignore_exceptions)
        async for _ in self._shown_aio(results, iterables) if progress else results:
            pass

    @verb(_for_each_aio)
    def for_each(
        self,
        *iterables: Iterable[Any],
        ignore_exceptions: bool = False,
        progress: bool = False,
    ) -> None:
        """As `map`, for functions whose results do not matter; returns when all are done.

        Args:
            ignore_exceptions: go on when a call fails, and do not say so.
            progress: as of `map`.

        Raises:
            Exception: what the first call to fail did, as `FunctionCall.get` would, unless
                *ignore_exceptions*; the others in flight are cancelled then.
            ExecutorNotFound, ExecutorClosed, ExecutorGone: there is nobody to run the rest,
                which is raised in any case.
        """
        inputs = zip(*iterables, strict=False)
        results = mapping.run(self, inputs, False, ignore_exceptions)
        for _ in self._shown(results, iterables) if progress else results:
            pass

    def _shown(self, results: Iterator[Any], iterables: tuple[Any, ...]) -> Iterator[Any]:
        from .progress import shown

        return shown(results, str(self.address), iterables)

    def _shown_aio(
        self, results: AsyncIterator[Any], iterables: tuple[Any, ...]
    ) -> AsyncIterator[Any]:
        from .progress import shown_aio

        return shown_aio(results, str(self.address), iterables)

    # ---- the handle itself ---------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"'{self.address}' cannot be called directly; use .remote(...) for one input, "
            f"or .local(...) with lists"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The private name of a running app travels with the handle.
        address = replace(self.address, app=names.resolve(self.address.app))
        return _unpickle, (address, self._options())

    def __repr__(self) -> str:
        return f"<Function '{self.address}'>"


def _unpickle(address: names.Address, options: dict[str, Any]) -> Function:
    return Function(address, **options)
