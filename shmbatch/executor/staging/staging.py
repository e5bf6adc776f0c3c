"""Where a batch's inputs are gathered, padded and moved, and its results come back to.

::

    slots --gather--> room ----moved----> f(...) --fetched--> host result --scatter--> slots
                      one a column, on the host               where the device is not the host

A `Staging` has one set of this for each batch in flight, and one more, so that gathering never
waits for a copy that is under way. What may be asynchronous is the device's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ...contract.columns import Column
from ...contract.exceptions import pack_exception
from ...contract.packing import Packing, packing
from ...contract.ragged import Padded
from ...contract.signature import Signature
from ...contract.sizes import padded_size
from ...protocol._core import Batch
from .devices import Buffer, Device, Landing, Results, as_seen
from .direct import Direct, Run
from .lending import protected


class _Set:
    """Room for one batch: its columns', the lengths' of padded ones, and its results'."""

    def __init__(
        self,
        signature: Signature,
        rows: int,
        device: Device,
        direct: Direct | None,
        read_only: bool,
    ) -> None:
        self.columns: list[Buffer | None] = []  # None for lists
        self.lengths: list[Buffer | None] = []  # of padded columns
        self.rooms: list[tuple[Any, Any] | None] = []  # as `Batch.gather` takes them
        for column in signature.parameters:
            buffer = lengths = room = None
            if column.kind == "array" or column.padded:
                buffer = device.buffer(column, rows)
                host = protected(column, buffer.host) if read_only else buffer.host
                room = (buffer.room, host)
            if buffer is not None and column.padded:
                lengths = device.buffer(_lengths_column(column), rows)
                room = (buffer.room, lengths.room)
            self.columns.append(buffer)
            self.lengths.append(lengths)
            self.rooms.append(room)
        # The same without the columns that are copied directly.
        self.others = self.rooms if direct is None else direct.without(self.rooms)
        self.results: Results | None = device.results(signature.result, rows)


class Staging:
    """Gathers the inputs of one function's batches, and fetches their results.

    Args:
        rows: most calls in a batch.
        sizes: the sizes that a batch may have, increasing; None for all up to *rows*.
        direct: copies large rows straight out of the slots; None to gather all of them.
        read_only: the function leaves its inputs as they are.
        address: of the function, for messages.
        module: that of the user's function.
        record_nbytes: room for an error record in a slot.
        note: told of each rejected row's error, that it is one call's, and how loudly to say so.

    Raises:
        ConfigError: the device has no room for it.
    """

    def __init__(
        self,
        signature: Signature,
        rows: int,
        device: Device,
        *,
        sizes: tuple[int, ...] | None = None,
        direct: Direct | None = None,
        read_only: bool = False,
        address: str,
        module: str | None,
        record_nbytes: int,
        note: Callable[[BaseException, int, int], None] = lambda error, calls, level: None,
    ) -> None:
        self._note = note
        self._device = device
        self._sizes = sizes
        self._direct = direct
        self._read_only = read_only
        self._parameters = signature.parameters
        self._record_nbytes = record_nbytes
        sets = 1 if device.depth == 1 else device.depth + 1
        self._sets = [_Set(signature, rows, device, direct, read_only) for _ in range(sets)]
        self._turn = 0
        self.fetches = self._sets[0].results is not None  # what functions return
        # What Python has still to do with a gathered column, by its number.
        self._packed: list[tuple[int, Packing, str]] = []
        self._tensors: list[tuple[int, Column]] = []  # lists of them
        self._padded: list[tuple[int, Column]] = []
        self._stacks: list[int] = []
        for number, column in enumerate(signature.parameters):
            subject = f"parameter {column.name!r} of {address}"
            packed = packing(column, subject, module)
            if packed is not None:
                self._packed.append((number, packed, subject))
            elif column.padded:
                self._padded.append((number, column))
            elif column.kind == "array":
                self._stacks.append(number)
            elif column.kind == "ragged" and column.library == "torch":
                self._tensors.append((number, column))

        # On the CPU, mostly, there is nothing else to do; small calls feel every look.
        more = self._packed or self._padded or self._tensors or sizes is not None
        self.only_gathers = not more and not self.fetches
        # What is padded, or moved to a device, is copied in any case.
        moves = self._padded or self.fetches or sizes is not None
        self.lends = read_only and not moves  # see `lending`

    def gather(self, batch: Batch) -> tuple[list[Any], int]:
        """Return the batch's inputs where the function runs, and how many there are of each.

        That is one list or stack a parameter, of an allowed size: the last input is repeated to
        fill it up. The stacks belong to the staging: they stay valid until the batch is complete.
        Rows whose bytes are no value are rejected: they get that error, and the others are as if
        they had never been there. There may be none left.
        """
        if self.only_gathers:
            return self.gather_alone(batch), batch.count
        self._turn = (self._turn + 1) % len(self._sets)
        room = self._sets[self._turn]
        direct = self._direct
        runs = direct.runs(batch) if direct is not None else None
        rooms = room.rooms if runs is None else room.others
        inputs = batch.gather(rooms)
        while self._packed and not self._unpack(batch, inputs):
            if not batch.count:
                return inputs, 0
            inputs = batch.gather(rooms)
            runs = direct.runs(batch) if direct is not None and runs is not None else None
        for number, column in self._tensors:
            inputs[number] = [as_seen(column, array) for array in inputs[number]]
        count = batch.count
        size = count if self._sizes is None else padded_size(self._sizes, count)
        if self._padded or self.fetches or size > count:
            with self._device.copying():
                self._move(room, inputs, count, size, runs)
        for number, _ in self._tensors if self.fetches else ():
            inputs[number] = [self._device.copied(tensor) for tensor in inputs[number]]
        if size > count:
            for values in inputs:
                if isinstance(values, list):
                    values.extend(values[-1:] * (size - count))
        return inputs, size

    def gather_alone(self, batch: Batch) -> list[Any]:
        """As `gather`, where that `only_gathers`: the inputs, of every call in the batch."""
        return batch.gather(self._sets[0].rooms)

    def warm_up(self, function: Callable[..., Any], size: int) -> None:
        """Run a function of arrays on a batch of zeros, to the end; before any call has come."""
        buffers = self._sets[self._turn].columns
        inputs = []
        with self._device.copying():
            for buffer in buffers:
                assert buffer is not None, "every parameter is an array"
                inputs.append(buffer.moved((size, *buffer.host.shape[1:]), size))
        self._protect(inputs)
        value = function(*inputs)
        if self.fetches:
            self.fetch(value, size)[1].wait()

    def fetch(self, value: Any, count: int) -> tuple[Any, Landing]:
        """Start copying what the function returned for the batch gathered last, for its *count*
        calls; return it as it will stand on the host, and when."""
        results = self._sets[self._turn].results
        assert results is not None, "this device's results are on the host"
        with self._device.fetching():
            fetched = results.fetched(value, count)
        return fetched, self._device.landing(value)

    def _move(
        self, room: _Set, inputs: list[Any], count: int, size: int, runs: list[Run] | None
    ) -> None:
        direct = self._direct if runs is not None else None
        for number in self._stacks:
            if direct is None or number not in direct.columns:
                buffer = room.columns[number]
                assert buffer is not None
                inputs[number] = buffer.moved(tuple(inputs[number].shape), size)
        if direct is not None and runs is not None:
            direct.fill(room.columns, inputs, runs, count, size)
        for number, _ in self._padded:
            rows, lengths = room.columns[number], room.lengths[number]
            assert rows is not None
            assert lengths is not None
            shape: tuple[int, ...] = inputs[number]
            inputs[number] = Padded(
                rows.moved(shape, size), lengths.moved((count, *lengths.host.shape[1:]), size)
            )
        self._protect(inputs)

    def _protect(self, inputs: list[Any]) -> None:
        """Make what was moved as read-only as what was not; see `_Set`."""
        for number in self._stacks if self._read_only else ():
            inputs[number] = protected(self._parameters[number], inputs[number])
        for number, column in self._padded if self._read_only else ():
            inputs[number] = Padded(*(protected(column, each) for each in inputs[number]))

    def _unpack(self, batch: Batch, inputs: list[Any]) -> bool:
        """Put values in the place of what they were packed into; False if rows were rejected."""
        errors: dict[int, BaseException] = {}
        for number, packed, subject in self._packed:
            unpack = packed.unpack
            payloads = inputs[number]
            try:
                inputs[number] = [unpack(payload, subject) for payload in payloads]
            except BaseException:  # one of them; which ones, costs only those who have to know
                inputs[number] = values = []
                for row, payload in enumerate(payloads):
                    try:
                        values.append(unpack(payload, subject))
                    except BaseException as error:
                        errors.setdefault(row, error)
                        values.append(None)
        for row in sorted(errors, reverse=True):  # those behind a rejected row move up
            batch.reject(row, pack_exception(errors[row], self._record_nbytes))
            self._note(errors[row], 1, logging.WARNING)
        rejected = bool(errors)
        errors.clear()  # their tracebacks hold this frame, and with it every payload
        return not rejected


def _lengths_column(column: Column) -> Column:
    """Return the column that the lengths of a padded column's rows would be."""
    variable = len(column.variable)
    shape = (variable,) if variable > 1 else ()
    return replace(
        column, kind="array", dtype="int64", shape=shape, axes=(), padded=False, max_bytes=0
    )
