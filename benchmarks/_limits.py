"""What bounds any system that batches: the function on ready batches, and what must be copied.

::

    plain loop                          ready batch --> f
    plain loop, copying      input --copy--> batch  --> f
    two loops, copying twice input --copy--> slot --copy--> batch --> f
                             one process             another one

Nothing is waited for but, in the last one, each other, by spinning: so two CPUs do nothing but
what whoever hands rows to another process, and stacks them there, has to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from itertools import cycle
from time import monotonic_ns
from typing import Any, TypeAlias

import numpy as np

from benchmarks._crew import CONTEXT, Crew, Cue
from benchmarks._works import Array, Work

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
    inputs = work.inputs(0, 2 * work.max_batch_size)  # images: more than caches hold
    next_input = cycle(inputs).__next__
    batch[:] = inputs[: len(batch)]
    schedule = cue.ready()
    count = first_ns = 0
    while (now := monotonic_ns()) < schedule.end_ns or not count:
        if now >= schedule.begin_ns:
            first_ns = first_ns or now
            count += 1
        if copying:
            for row in batch:
                row[:] = next_input()
        work.function(batch, results)
    return (now - first_ns) / count


def fill_slots(cue: Cue, work: Work, shared: Any) -> None:
    """Copy inputs into the slots, a batch of them ahead of who reads them, until the end."""
    filled, read, slots = _views(work, shared)
    next_input = cycle(work.inputs(0, 2 * work.max_batch_size)).__next__
    schedule = cue.ready()
    count = 0
    while True:
        while count - read[0] >= BATCHES:
            if monotonic_ns() >= schedule.end_ns:
                return
        for slot in slots[count % BATCHES]:
            slot[:] = next_input()
        count += 1
        filled[0] = count


def execute_from_slots(cue: Cue, work: Work, shared: Any) -> float:
    """How long a batch took on the average, in nanoseconds; its inputs are copied from slots."""
    batch, results = work.stacks()
    filled, read, slots = _views(work, shared)
    schedule = cue.ready()
    count = counted = first_ns = 0
    while (now := monotonic_ns()) < schedule.end_ns or not counted:
        if now >= schedule.begin_ns:
            first_ns = first_ns or now
            counted += 1
        while filled[0] <= count:
            pass
        for row, slot in zip(batch, slots[count % BATCHES], strict=True):
            row[:] = slot
        work.function(batch, results)
        count += 1
        read[0] = count
    return (now - first_ns) / counted


def _views(work: Work, shared: Any) -> tuple[Array, Array, Array]:
    """How many batches were filled, how many read; and the slots, batch by batch."""
    counters = np.frombuffer(shared, np.int64, _COUNTERS_NBYTES // 8).reshape(2, -1)
    slots = np.frombuffer(shared, work.dtype, offset=_COUNTERS_NBYTES)
    return counters[0], counters[1], slots.reshape(BATCHES, work.max_batch_size, *work.shape)
