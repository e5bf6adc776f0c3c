"""What bounds any system that batches: the function on ready batches, and what must be copied.

::

    plain loop                          ready batch --> f
    plain loop, copying      input --copy--> batch  --> f
    two loops, copying twice input --copy--> slot --copy--> batch --> f
                             one process             another one

Nothing is waited for but, in the last one, each other, by spinning: so two CPUs do nothing but
what whoever hands rows to another process, and stacks them there, has to. Rows are copied one by
one, in Python: for small ones that is no limit, and with more CPUs several could write.

The two of the last one tell each other how far they are by counters in shared memory, which they
only add to; they rely on stores becoming visible in order, as on x86.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from time import monotonic_ns
from typing import Any, TypeAlias

import numpy as np

from benchmarks._crew import CONTEXT, PATIENCE_S, Crew, Cue
from benchmarks._works import Array, Work, check

Figures: TypeAlias = dict[str, float]
Measure: TypeAlias = Callable[[Work, float, float], Figures]

LABELS = {
    "loop": "plain loop",
    "loop-copying": "plain loop, copying",
    "loops-copying-twice": "two loops, copying twice",
}
BATCHES = 2  # that fit into the slots: one is written while the other is read
_COUNTERS_NBYTES = 128  # one for each process, each on a cache line of its own


def plain_loop(work: Work, warmup_s: float, measure_s: float, *, copying: bool) -> Figures:
    """The function on full batches, in a process of its own: calls per second."""
    with Crew() as crew:
        crew.add(execute_over_and_over, work, copying)
        (batch_ns,) = crew.measure(warmup_s, measure_s)
    return {"calls_per_s": work.max_batch_size * 1e9 / batch_ns}


def two_loops(work: Work, warmup_s: float, measure_s: float) -> Figures:
    """The same where another process copies each input into a slot before: calls per second."""
    nbytes = _COUNTERS_NBYTES + BATCHES * work.max_batch_size * work.row_nbytes
    shared = CONTEXT.RawArray(ctypes.c_char, nbytes)
    with Crew() as crew:
        crew.add(execute_from_slots, work, shared)
        crew.add(fill_slots, work, shared)
        batch_ns, _ = crew.measure(warmup_s, measure_s)
    return {"calls_per_s": work.max_batch_size * 1e9 / batch_ns}


MEASURES: dict[str, Measure] = {
    "loop": partial(plain_loop, copying=False),
    "loop-copying": partial(plain_loop, copying=True),
    "loops-copying-twice": two_loops,
}


def execute_over_and_over(cue: Cue, work: Work, copying: bool) -> float:
    """How long a batch took on the average, in nanoseconds."""
    batch, results = work.stacks()
    inputs = _inputs(work)
    batch[:] = inputs[0]
    schedule = cue.ready()
    count = counted = first_ns = 0
    while (now := monotonic_ns()) < schedule.end_ns or not counted:
        if now >= schedule.begin_ns:
            first_ns = first_ns or now
            counted += 1
        if copying:
            for row, x in zip(batch, inputs[count % BATCHES], strict=True):
                row[:] = x
        work.function(batch, results)
        count += 1
    _check_last(work, count if copying else 1, results)
    return (now - first_ns) / counted


def fill_slots(cue: Cue, work: Work, shared: Any) -> None:
    """Copy inputs into the slots, a batch of them ahead of who reads them, until the end."""
    filled, read, slots = _views(work, shared)
    inputs = _inputs(work)
    schedule = cue.ready()
    count = 0
    while True:
        while count - read[0] >= BATCHES:
            if monotonic_ns() >= schedule.end_ns:
                return
        for slot, x in zip(slots[count % BATCHES], inputs[count % BATCHES], strict=True):
            slot[:] = x
        count += 1
        filled[0] = count


def execute_from_slots(cue: Cue, work: Work, shared: Any) -> float:
    """How long a batch took on the average, in nanoseconds; its inputs are copied from slots."""
    batch, results = work.stacks()
    filled, read, slots = _views(work, shared)
    schedule = cue.ready()
    patient_ns = schedule.end_ns + int(PATIENCE_S * 1e9)
    count = counted = first_ns = 0
    while (now := monotonic_ns()) < schedule.end_ns or not counted:
        if now >= schedule.begin_ns:
            first_ns = first_ns or now
            counted += 1
        while filled[0] <= count:
            if monotonic_ns() > patient_ns:
                raise TimeoutError("the process that fills the slots does not go on")
        for row, slot in zip(batch, slots[count % BATCHES], strict=True):
            row[:] = slot
        work.function(batch, results)
        count += 1
        read[0] = count
    _check_last(work, count, results)
    return (now - first_ns) / counted


def _inputs(work: Work) -> list[list[Array]]:
    """As many batches as fit into the slots; of images more than caches hold."""
    size = work.max_batch_size
    rows = work.inputs(0, BATCHES * size)
    return [rows[first : first + size] for first in range(0, BATCHES * size, size)]


def _check_last(work: Work, count: int, results: Array) -> None:
    """Raise WrongAnswer unless these are the results of the batch that was the last of so many."""
    answers = work.answers(_inputs(work)[(count - 1) % BATCHES])
    for result, answer in zip(results, answers, strict=True):
        check(result, answer, work.tolerance)


def _views(work: Work, shared: Any) -> tuple[Array, Array, Array]:
    """How many batches were filled, how many read; and the slots, batch by batch."""
    counters = np.frombuffer(shared, np.int64, _COUNTERS_NBYTES // 8).reshape(2, -1)
    slots = np.frombuffer(shared, work.dtype, offset=_COUNTERS_NBYTES)
    return counters[0], counters[1], slots.reshape(BATCHES, work.max_batch_size, *work.shape)
