"""A slot whose input is written in place, before it becomes a call."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..contract.coercion import Array, raw_bytes
from ..contract.columns import Column
from ..errors import ConfigError, InputError, InputTypeError, RingFull
from ..protocol._core import (
    SUBMIT_FULL,
    SUBMIT_LENT,
    SUBMIT_MISFIT,
    Loan,
    ProducerRing,
)
from .call import FunctionCall
from .connection import Connection, Forked, Replaced
from .lending import array_over
from .limits import Limits
from .results import viewer
from .slots import Queueing

if TYPE_CHECKING:
    from .function import Function


class Reservation:
    """A slot of this process's, and in no batch yet; what ``with f.reserve() as slot`` gives.

    Its items are the parameters, by name or by position. One that is an array of fixed shape is
    there: ``slot["frame"]`` is a writable array in shared memory, of the shape and the dtype that
    one value has, a CPU tensor where the function takes tensors (an array with
    ``arrays="numpy"``). What it holds before it is written is undefined, as with ``numpy.empty``.
    ``slot["frame"] = value`` copies a value there. Any other parameter has to be set, and is
    checked when the call is made; one that was not, or an array never asked for, is missing then.

    `remote` or `spawn` makes it a call, once. From then on, and from the end of the ``with`` on,
    the memory may belong to another call, and must not be written to any more: arrays that the
    reservation gave are read-only then; tensors, and arrays that were made of these before,
    cannot be, and are the caller's responsibility. Whatever happens, they do not dangle.

    Any thread may use it. A forked child may not, nor write to arrays that it has inherited.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._loan: Loan | None = None
        self._open: list[Loan] = []  # the same, for who is the first to take it out
        # Of each parameter by its number: what stands in the slot, and that as the caller sees it;
        # of those that are no arrays, what it was set to.
        self._arrays: dict[int, tuple[Array, Any]] = {}
        self._values: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._loan is not None:
            raise ConfigError(f"{self} was entered before; reserve another slot")
        self._connection, self._loan = _reserved(self._function)
        self._open.append(self._loan)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.clear()
        if self._loan is not None:
            self._loan.close()
        self._seal()

    # ---- its input -----------------------------------------------------------------------

    def __getitem__(self, parameter: str | int) -> Any:
        number, column = self._found(parameter)
        if column.kind == "array":
            return self._array(number, column)[1]
        if number not in self._values:
            raise ConfigError(
                f"parameter {column.name!r} of {self._function.address} is not an array of fixed "
                f"shape, so nothing of it is in the slot; set it"
            )
        return self._values[number]

    def __setitem__(self, parameter: str | int, value: Any) -> None:
        number, column = self._found(parameter)
        if column.kind != "array":
            self._values[number] = value
            return
        if value is self._arrays.get(number, (None, self))[1]:
            return  # after ``slot["frame"] += 1``
        subject = f"parameter {column.name!r} of {self._function.address}"
        coerced: Any = column.coerce(value, subject)
        array, _ = self._array(number, column)
        array[...] = np.ndarray(array.shape, array.dtype, coerced)

    def _found(self, parameter: str | int) -> tuple[int, Column]:
        self._check_open()
        columns = self._connection.signature.parameters
        for number, column in enumerate(columns):
            if parameter in (number, column.name):
                return number, column
        raise InputTypeError(
            f"{self._function.address}() has no parameter {parameter!r}; it has "
            f"{', '.join(column.name for column in columns)}"
        )

    def _array(self, number: int, column: Column) -> tuple[Array, Any]:
        found = self._arrays.get(number)
        if found is None:
            assert self._loan is not None
            array = array_over(column, self._loan.value(number))
            view = viewer(column, self._connection.arrays, f"parameter {column.name!r}")
            shown = array if view is None else view(array)
            found = self._arrays.setdefault(number, (array, shown))  # another thread may ask, too
        return found

    # ---- the call ------------------------------------------------------------------------

    def remote(self) -> Any:
        """Make the call, wait, and return its result.

        Time that the handle's timeout and deadline give begins here. Where the connection is not
        what it was when the slot was reserved, because the executor has died or was replaced, the
        input is copied from here into a slot that there is, as by an ordinary call. Else nothing
        is copied but parameters that are no arrays.

        Raises:
            InputError: a value does not fit, or is missing; nothing was sent, and the call may be
                made again.
            ConfigError: the call was made before, the ``with`` has ended, or this is a fork.
            as `Function.remote`, else.
        """
        return self.spawn().get()

    def spawn(self) -> FunctionCall:
        """Make the call, and return at once.

        Raises:
            as `remote`, but for what happens to the call itself, which `FunctionCall.get` raises.
        """
        self._check_open()
        try:
            loan = self._open.pop()
        except IndexError:
            raise self._over() from None  # another thread was faster
        function, connection = self._function, self._connection
        try:
            limits = function._limits_from_now()
            given = self._given()
            values = connection.signature.bind((), given, str(function.address))
            call = self._spawned(loan, values, limits)
            if call == SUBMIT_MISFIT:
                call = self._spawned(loan, connection.refusal(SUBMIT_MISFIT, values), limits)
            if isinstance(call, int):  # it takes no more calls, or the slot was left behind
                call = function.spawn(**given)
        except InputError:
            self._open.append(loan)
            raise
        except BaseException:  # a signal handler's, when the slot was no longer ours to write to
            self._seal()
            raise
        self._seal()
        return call

    def _given(self) -> dict[str, Any]:
        """Return the arguments by name; those in the slot as the core takes them."""
        columns = self._connection.signature.parameters
        given = {columns[number].name: value for number, value in self._values.copy().items()}
        for number, (array, _) in self._arrays.copy().items():
            raw = columns[number].carrier is memoryview
            given[columns[number].name] = raw_bytes(array) if raw else array
        return given

    def _spawned(self, loan: Loan, values: tuple[Any, ...], limits: Limits) -> FunctionCall | int:
        args = (self._connection, limits, values, limits.deadline_ns)
        try:
            return loan.spawn(FunctionCall, *args)
        except ValueError:  # another thread has left the `with` meanwhile
            raise self._over() from None

    def _seal(self) -> None:
        """Let nobody write any more, as far as that can be had, and forget the arrays."""
        arrays, self._arrays, self._values = self._arrays, {}, {}
        for array, _ in arrays.copy().values():
            array.flags.writeable = False

    def _check_open(self) -> None:
        if not self._open:
            raise self._over()
        if self._connection.ring.forked:
            raise ConfigError(f"{self} belongs to the parent process; reserve a slot in this one")

    def _over(self) -> ConfigError:
        why = "its call was made, or its `with` has ended"
        if self._loan is None:
            why = "it has no slot before `with`"
        return ConfigError(f"{self} cannot be used: {why}; reserve another slot")

    def __repr__(self) -> str:
        return f"<Reservation of '{self._function.address}'>"


def _reserved(function: Function) -> tuple[Connection, Loan]:
    if function.live() is None:
        function.connect()  # which is not the call's time
    limits = function._limits_from_now()
    while True:
        connection = function.live() or function.connect(limits=limits)
        try:
            return connection, _lent(connection, limits)
        except Forked:
            continue
        except Replaced:
            function.forget(connection)


def _lent(connection: Connection, limits: Limits) -> Loan:
    """Lend a slot; blocks, and raises, as `Connection.submit`."""

    def attempt(entrance: ProducerRing | Queueing) -> Loan | int:
        while True:
            got = entrance.reserve(connection.slots.tell)
            if not isinstance(got, int) or got == SUBMIT_FULL:
                return got
            if got == SUBMIT_LENT:
                most = connection.capacity // 2
                letting_go = "let go of one, or " if most else ""
                raise RingFull(
                    f"{most} of {connection.capacity} slots for '{connection.address}' are "
                    f"reserved or borrowed, and no more than half may be; "
                    f"{letting_go}give the function more with slots="
                )
            connection.refusal(got, ())

    loan = attempt(connection.slots.entrance)
    if loan == SUBMIT_FULL:
        loan = connection.in_turn(lambda: attempt(connection.ring), limits)
    assert not isinstance(loan, int)
    return loan
