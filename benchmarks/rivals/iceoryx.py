"""iceoryx2: its zero-copy publish-subscribe with its events, batching loop by hand.

::

    producer 0 ==loaned row==> +                                  +==loaned rows==> producer 0
    producer 1 ==loaned row==> +--> gather into batch --> f ------+==loaned rows==> producer 1
    ...                        |                      results of  +==...
      `----- event: number ----'                      one in one sample, and an event

A service each way for every producer. A row is written into memory that the executor has mapped,
and the executor copies it once, into the batch; the results of a producer are one sample, which
begins with their number. Payloads have a fixed size: to loan a slice takes Python 8 µs more.
Events that nobody has taken yet are one. The executor waits with a WaitSet: its timeout is in
whole milliseconds, that of a listener in the kernel's ticks, 4 ms or 8. Documentation:
examples/python, publish_subscribe and event_based_communication; domains, for names of its own.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np

from benchmarks._crew import PRELOAD, Crew, Cue
from benchmarks._load import Load, drive
from benchmarks._works import Array, Work

COUNT_NBYTES = 8  # of results, before them
SMALL_NBYTES = 4096


def measure(work: Work, load: Load, warmup_s: float, measure_s: float) -> list[bytes]:
    """Measure once, in fresh processes; the producers' latencies."""
    folder = tempfile.gettempdir()
    with Crew(PRELOAD) as crew:
        crew.add(executor, work, load, folder)
        for number in range(load.producers):
            crew.add(producer, work, load, number, folder)
        _, *latencies = crew.measure(warmup_s, measure_s)
    return latencies


class Ports:
    """What both sides make: a node of this measurement's own domain, services and events."""

    def __init__(self, work: Work, load: Load, folder: str) -> None:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        config = iceoryx2.config.global_config()
        config.global_cfg.prefix = iceoryx2.FileName.new(f"{Path(folder).name}_")
        config.global_cfg.root_path = iceoryx2.Path.new(f"{folder}/")
        builder = iceoryx2.NodeBuilder.new().config(config)
        self.iceoryx2 = iceoryx2
        self.node = builder.create(iceoryx2.ServiceType.Ipc)
        self._work, self._load = work, load

    def service(self, name: str, nbytes: int) -> Any:
        """A service of so many bytes with one publisher and one subscriber."""
        return (
            self.node.service_builder(self.iceoryx2.ServiceName.new(name))
            .publish_subscribe(ctypes.c_uint8 * nbytes)
            .max_publishers(1)
            .max_subscribers(1)
            .subscriber_max_buffer_size(self._load.in_flight)
            .enable_safe_overflow(False)
            .payload_alignment(self.iceoryx2.Alignment.new(64))
            .open_or_create()
        )

    def inputs(self, number: int) -> Any:
        """The service of one producer's inputs."""
        return self.service(f"inputs/{number}", self._work.row_nbytes)

    def results(self, number: int) -> Any:
        """The service of one producer's results: their number, and the rows."""
        nbytes = COUNT_NBYTES + self._load.in_flight * self._work.result_nbytes
        return self.service(f"results/{number}", nbytes)

    def event(self, name: str) -> Any:
        """An event service; each producer has two numbers there: for inputs, and its last one."""
        return (
            self.node.service_builder(self.iceoryx2.ServiceName.new(name))
            .event()
            .event_id_max_value(2 * self._load.producers)
            .max_notifiers(self._load.producers)
            .max_listeners(1)
            .max_nodes(self._load.producers + 1)
            .open_or_create()
        )


class Waiter:
    """A listener on which one can wait with and without a timeout."""

    def __init__(self, ports: Ports, listener: Any) -> None:
        iceoryx2 = ports.iceoryx2
        self._duration = iceoryx2.Duration.from_nanos
        self._listener = listener
        self._set = iceoryx2.WaitSetBuilder.new().create(iceoryx2.ServiceType.Ipc)
        self._guard = self._set.attach_notification(listener)
        self.take = listener.try_wait
        self.wait = listener.blocking_wait

    def wait_ns(self, timeout_ns: int) -> Any:
        """Take the events that come within so many nanoseconds; one that is there, at once."""
        self._set.wait_and_process_with_timeout(self._duration(timeout_ns))
        return self._listener.try_wait()


def executor(cue: Cue, work: Work, load: Load, folder: str) -> None:
    """Batch the inputs of all producers until each has hung up."""
    batch, results = work.stacks()
    ports = Ports(work, load, folder)
    numbers = range(load.producers)
    subscribers = [ports.inputs(n).subscriber_builder().create() for n in numbers]
    publishers = [ports.results(n).publisher_builder().create() for n in numbers]
    notifiers = [ports.event(f"results/{n}").notifier_builder().create() for n in numbers]
    waiter = Waiter(ports, ports.event("inputs").listener_builder().create())
    row_nbytes, result_nbytes = work.row_nbytes, work.result_nbytes
    addresses = [row.ctypes.data for row in batch]
    message = np.zeros(COUNT_NBYTES + work.max_batch_size * result_nbytes, np.uint8)
    message_address, count = message.ctypes.data, message[:COUNT_NBYTES].view(np.int64)
    stacked = message[COUNT_NBYTES:].view(work.result_dtype).reshape(-1, *work.result_shape)
    places: list[list[int]] = [[] for _ in numbers]
    there: dict[int, None] = {}  # producers whose inputs may be there, who was heard first first
    running, filled, deadline_ns = load.producers, 0, 0
    cue.ready()

    while running:
        if there:
            events = waiter.take()
        elif not filled:
            events = waiter.wait()
        elif (left_ns := deadline_ns - monotonic_ns()) > 0:
            events = waiter.wait_ns(left_ns)
        else:
            events = ()
        for event in events:
            number = event.id.as_value
            if number < load.producers:
                there[number] = None
            else:
                running -= 1
        for number in list(there):
            receive = subscribers[number].receive
            while filled < work.max_batch_size:
                if (sample := receive()) is None:
                    del there[number]
                    break
                if not filled:
                    deadline_ns = monotonic_ns() + work.wait_ns
                ctypes.memmove(addresses[filled], sample.payload_ptr, row_nbytes)
                sample.delete()
                places[number].append(filled)
                filled += 1
        if filled == work.max_batch_size or (filled and monotonic_ns() >= deadline_ns):
            work.function(batch[:filled], results[:filled])
            for number, its in enumerate(places):
                if its:
                    count[0] = n = len(its)
                    np.take(results, its, axis=0, out=stacked[:n], mode="clip")
                    sample = publishers[number].loan_uninit()
                    nbytes = COUNT_NBYTES + n * result_nbytes
                    ctypes.memmove(sample.payload_ptr, message_address, nbytes)
                    sample.assume_init().send()
                    notifiers[number].notify()
                    its.clear()
            filled = 0


def producer(cue: Cue, work: Work, load: Load, number: int, folder: str) -> bytes:
    """Load the executor: one loaned sample per input, one or more results in each received."""
    ports = Ports(work, load, folder)
    publisher = ports.inputs(number).publisher_builder().create()
    subscriber = ports.results(number).subscriber_builder().create()
    waiter = Waiter(ports, ports.event(f"results/{number}").listener_builder().create())
    notifier = ports.event("inputs").notifier_builder().create()
    new_id = ports.iceoryx2.EventId.new
    mine, last = new_id(number), new_id(load.producers + number)
    row_nbytes, result_nbytes = work.row_nbytes, work.result_nbytes
    results = np.ones((load.in_flight, *work.result_shape), work.result_dtype)
    address = results.ctypes.data

    def submit(x: Array) -> None:
        sample = publisher.loan_uninit()
        # To find out an array's address costs more than to copy a small one.
        source = x.tobytes() if row_nbytes <= SMALL_NBYTES else x.ctypes.data
        ctypes.memmove(sample.payload_ptr, source, row_nbytes)
        sample.assume_init().send()
        notifier.notify_with_custom_event_id(mine)

    def collect(timeout_s: float | None) -> Array:
        deadline_ns = None if timeout_s is None else monotonic_ns() + int(timeout_s * 1e9)
        there = 0
        while True:
            while (sample := subscriber.receive()) is not None:
                pointer = sample.payload_ptr
                count = ctypes.c_int64.from_address(pointer).value
                start = address + there * result_nbytes
                ctypes.memmove(start, pointer + COUNT_NBYTES, count * result_nbytes)
                sample.delete()
                there += count
            if there:
                return results[:there]
            if deadline_ns is None:
                waiter.wait()
            elif (left_ns := deadline_ns - monotonic_ns()) > 0:
                waiter.wait_ns(left_ns)
            else:
                return results[:0]

    try:
        return drive(cue, work, load, number, submit, collect)
    finally:
        notifier.notify_with_custom_event_id(last)
