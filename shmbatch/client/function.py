"""The handle a producer calls: an address, options, and the verbs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from ..contract.signature import Signature
from ..errors import ConfigError
from ..protocol import names
from ..protocol._core import ASYNC, FAILED, PENDING, SPAWNED, SUBMIT_FORKED, SUBMIT_FULL
from ..protocol.clock import deadline_ns as deadline_after
from . import mapping
from .call import FunctionCall
from .connection import Connection, Forked
from .pool import connection_to
from .verbs import verb

_serving: set[str] = set()  # apps that this process is the executor of


def serving(app: str) -> None:
    """Say that this process is *app*'s executor: its functions must not wait for themselves."""
    _serving.add(app)


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
        arrays: ``"numpy"`` to get tensors as arrays, without importing torch.
        wait: ``"auto"``, ``"spin"`` or ``"park"``; by default what SHMBATCH_WAIT says.
    """

    def __init__(
        self,
        address: names.Address,
        *,
        local: Callable[..., Any] | None = None,
        signature: Signature | None = None,
        timeout: float | None = None,
        arrays: str = "native",
        wait: str | None = None,
    ) -> None:
        deadline_after(timeout)  # checks it
        self.address = address
        self._plain = local
        self._signature = signature
        self._timeout = timeout
        self._arrays = arrays
        self._wait = wait
        self._connection: Connection | None = None

    def connect(self, timeout: float | None = 0) -> Connection:
        """Return a live connection, waiting up to *timeout* seconds for an executor.

        Raises:
            ExecutorNotFound, HandshakeError: as `shmbatch.connect`.
        """
        connection = self._connection
        if connection is None or connection.dead or connection.ring.forked:
            if self.address.app in _serving:
                raise ConfigError(
                    f"'{self.address}' is called inside its own executor, which would wait for "
                    f"itself; call .local(...) with lists there"
                )
            connection = self._connection = connection_to(
                self.address,
                self._signature,
                deadline_after(timeout),
                arrays=self._arrays,
                wait=self._wait,
            )
            connection.handles.add(self)
        return connection

    def forget(self, connection: Connection) -> None:
        """Let go of a connection; the next call looks the name up and connects anew."""
        if self._connection is connection:
            self._connection = None

    def local(self, *args: Any, **kwargs: Any) -> Any:
        """Call the plain function, on lists or stacks, here and now, without batching."""
        if self._plain is None:
            raise ConfigError(
                f"this process has the address '{self.address}' but not the function; "
                f"import it from its file to call it locally"
            )
        return self._plain(*args, **kwargs)

    def with_options(self, *, timeout: float | None = None) -> Function:
        """Return a handle of the same function with another timeout, in seconds.

        It covers waiting for a slot and for the result; then the call is abandoned, and if it
        was not launched it never runs.
        """
        return Function(
            self.address,
            local=self._plain,
            signature=self._signature,
            timeout=timeout,
            arrays=self._arrays,
            wait=self._wait,
        )

    # ---- one call ------------------------------------------------------------------------

    async def _remote_aio(self, *args: Any, **kwargs: Any) -> Any:
        deadline_ns = deadline_after(self._timeout)
        connection, ticket = await self._submit_aio(args, kwargs, ASYNC, deadline_ns)
        try:
            while (outcome := connection.ring.poll(ticket, 0)) is PENDING:
                await connection.listening().any_outcome([ticket], deadline_ns)
            if outcome is FAILED:
                raise connection.error(ticket)
            return outcome
        except BaseException:
            _abandon(connection, ticket)
            raise

    @verb(_remote_aio)
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Send one input, wait, and return its own result.

        Cost: one copy in and one out; no system call while caller and executor are awake.

        Raises:
            InputError: a value does not fit; nothing was sent.
            RingFull, CallTimeout: the handle's timeout passed before there was a slot, or a
                result; the call is abandoned.
            ExecutorNotFound, ExecutorClosed, ExecutorGone: there is nobody to run it.
            Exception: what the function raised, with the executor's traceback in its notes.
        """
        connection = self._connection
        if connection is None or connection.dead:
            connection = self.connect()
        if kwargs:
            args = connection.signature.bind(args, kwargs, str(self.address))
        deadline_ns = None if self._timeout is None else deadline_after(self._timeout)
        ticket = connection.ring.submit(args, 0)
        if ticket < 0:
            connection, ticket = self._submit(args, 0, deadline_ns)
        try:
            outcome = connection.ring.poll(ticket, connection.spinning.spin_ns)
            if outcome is PENDING or outcome is FAILED:
                return connection.wait(ticket, outcome, deadline_ns)
            return outcome
        except BaseException:
            _abandon(connection, ticket)
            raise

    async def _spawn_aio(self, *args: Any, **kwargs: Any) -> FunctionCall:
        deadline_ns = deadline_after(self._timeout)
        connection, ticket = await self._submit_aio(args, kwargs, ASYNC | SPAWNED, deadline_ns)
        return FunctionCall(connection, ticket, deadline_ns)

    @verb(_spawn_aio)
    def spawn(self, *args: Any, **kwargs: Any) -> FunctionCall:
        """Send one input and return at once; waits only for a free slot.

        Raises:
            as `remote`, but for what happens to the call itself, which `FunctionCall.get` raises.
        """
        connection = self._connection
        if connection is None or connection.dead:
            connection = self.connect()
        if kwargs:
            args = connection.signature.bind(args, kwargs, str(self.address))
        deadline_ns = None if self._timeout is None else deadline_after(self._timeout)
        ticket = connection.ring.submit(args, SPAWNED)
        if ticket < 0:
            connection, ticket = self._submit(args, SPAWNED, deadline_ns)
        return FunctionCall(connection, ticket, deadline_ns)

    def _submit(
        self, values: tuple[Any, ...], flags: int, deadline_ns: int | None
    ) -> tuple[Connection, int]:
        """Submit what the core did not take at once."""
        while True:
            connection = self.connect()
            try:
                return connection, connection.submit(values, flags, deadline_ns)
            except Forked:
                continue

    async def _submit_aio(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        flags: int,
        deadline_ns: int | None,
    ) -> tuple[Connection, int]:
        while True:
            connection = self._connection
            if connection is None or connection.dead or connection.ring.forked:
                import asyncio

                connection = await asyncio.to_thread(self.connect)
            values = connection.signature.bind(args, kwargs, str(self.address))
            ticket = connection.ring.submit(values, flags)
            while ticket < 0 and ticket != SUBMIT_FORKED:
                if ticket == SUBMIT_FULL:
                    await connection.listening().slot(deadline_ns)
                else:
                    values = connection.refusal(ticket, values)
                ticket = connection.ring.submit(values, flags)
            if ticket >= 0:
                return connection, ticket

    # ---- many calls ----------------------------------------------------------------------

    def _map_aio(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        inputs = mapping.zip_aio(iterables)
        return mapping.run_aio(self, inputs, order_outputs, return_exceptions)

    @verb(_map_aio)
    def map(
        self,
        *iterables: Iterable[Any],
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Yield the result of each input, keeping a batch or two of calls in flight.

        Takes one iterable a parameter, read lazily, until the shortest ends. Results come in the
        order of the inputs, or with ``order_outputs=False`` as they are done. The first failed
        call raises, unless ``return_exceptions``: then exceptions are yielded in their places.
        Leaving the iterator early cancels what is in flight.
        """
        return mapping.run(self, zip(*iterables, strict=False), order_outputs, return_exceptions)

    def _starmap_aio(
        self,
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Any]:
        inputs = mapping.tuples_aio(iterable)
        return mapping.run_aio(self, inputs, order_outputs, return_exceptions)

    @verb(_starmap_aio)
    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        order_outputs: bool = True,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """As `map`, with one tuple of arguments an input."""
        return mapping.run(self, map(tuple, iterable), order_outputs, return_exceptions)

    async def _for_each_aio(
        self, *iterables: Iterable[Any] | AsyncIterable[Any], ignore_exceptions: bool = False
    ) -> None:
        inputs = mapping.zip_aio(iterables)
        async for _ in mapping.run_aio(self, inputs, False, ignore_exceptions):
            pass

    @verb(_for_each_aio)
    def for_each(self, *iterables: Iterable[Any], ignore_exceptions: bool = False) -> None:
        """As `map`, for functions whose results do not matter; returns when all are done."""
        for _ in mapping.run(self, zip(*iterables, strict=False), False, ignore_exceptions):
            pass

    # ---- the handle itself ---------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ConfigError(
            f"'{self.address}' cannot be called directly; use .remote(...) for one input, "
            f"or .local(...) with lists"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The private name of a running app travels with the handle.
        address = names.Address(names.resolve(self.address.app), self.address.function)
        options = (self._signature, self._timeout, self._arrays, self._wait)
        return _unpickle, (address, *options)

    def __repr__(self) -> str:
        return f"<Function '{self.address}'>"


def _unpickle(
    address: names.Address,
    signature: Signature | None,
    timeout: float | None,
    arrays: str,
    wait: str | None,
) -> Function:
    return Function(address, signature=signature, timeout=timeout, arrays=arrays, wait=wait)


def _abandon(connection: Connection, ticket: int) -> None:
    """Give a call up, unless it is over."""
    try:
        connection.ring.withdraw(ticket)
    except ValueError:
        pass
