"""How fast do inputs get from the slots to the device?

::

    slots --gather--> pinned memory --one copy a batch--> device       gathered
    slots --one copy for each run of neighbours---------> device       direct, registered slots
             pinned memory --one copy a batch-----------> device       the ceiling, same bytes

Three batches of 32 rows each are started behind one another, as many as there is room for, and
then waited for. What is timed is the executor's own `Staging.gather`, on rings that were filled
before. Rows are neighbours where one producer made the calls, and scattered where each of a batch
is from a producer of its own.

Promised is that the better of the two ways, which `direct_dma="auto"` is to choose, reaches 0.9
of the ceiling for rows of 64 KB and more. All rows are compared in one round of each run.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import _report
from benchmarks._works import WrongAnswer
from benchmarks.gpu._setting import Part, Setting, spread
from shmbatch.contract.columns import Column
from shmbatch.contract.signature import Signature
from shmbatch.contract.wire import ring_arguments, segment_layout
from shmbatch.executor.staging.devices import Cpu, Device
from shmbatch.executor.staging.direct import NEVER, measured
from shmbatch.executor.staging.staging import Staging
from shmbatch.protocol import layout
from shmbatch.protocol._core import (
    TICKET_SLOT_MASK,
    Batch,
    Bell,
    ExecutorRing,
    Inbox,
    ProducerRing,
)

ROWS = 32
BATCHES = 3  # as many sets of buffers as a staging has
SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
FLOOR, FLOOR_FROM = 0.9, 1 << 16
ROUNDS = 4  # of a run
PATTERNS = {"neighbours": 1, "scattered": ROWS}  # producers


def measure(setting: Setting) -> Part:
    part = Part()
    device = _device(setting)
    random = np.random.default_rng()
    pool = random.integers(0, 256, (4 << 20) + SIZES[-1], np.uint8)
    header = ["row", "ceiling GB/s"]
    header += [f"{way}, {pattern}" for pattern in PATTERNS for way in ("gathered", "direct")]
    rows = []
    large = spread([_ceiling(setting, 64 << 20, 1) for _ in range(setting.runs)])
    for nbytes in setting.few(SIZES):
        rates: dict[str, list[float]] = {}
        with _worlds(device, nbytes) as worlds:
            for _ in range(setting.runs):
                ceiling = _ceiling(setting, ROWS * nbytes, BATCHES)
                rates.setdefault("ceiling", []).append(ceiling)
                for name, world in worlds.items():
                    rates.setdefault(name, []).append(world.rate(setting, pool, random))
            runs = {name: world.neighbours for name, world in worlds.items()}
        spreads = {name: spread(values) for name, values in rates.items()}
        rows.append([_size(nbytes), *map(str, spreads.values())])
        part.figures[str(nbytes)] = {
            "gb_per_s": {name: each.document() for name, each in spreads.items()},
            "rows_in_a_run": runs,
        }
        if nbytes < FLOOR_FROM:
            continue
        for pattern in PATTERNS:
            ways = [name for name in spreads if name.endswith(pattern)]
            best = max(ways, key=lambda name: spreads[name].median)
            part.promises.append(
                _report.ratio(
                    f"{_size(nbytes)} rows, {best} / ceiling",
                    *(rates[best], rates["ceiling"]),
                    floor=FLOOR,
                )
            )
    part.figures["large_copy_gb_per_s"] = large.document()
    part.figures["direct_from_nbytes"] = _direct_from(setting)
    part.tables.append(_report.table(header, rows))
    chosen = part.figures["direct_from_nbytes"]
    part.tables.append(
        f"one pinned copy of 64 MiB: {large} GB/s; direct_dma='auto' copies directly from "
        f"{'no size on' if chosen is None else _size(chosen)}"
    )
    return part


def _device(setting: Setting) -> Device:
    if setting.rehearsal:
        return Cpu()
    from shmbatch.executor.staging.cuda import Cuda
    from shmbatch.executor.staging.runtime import TorchRuntime

    return Cuda(TorchRuntime(0))


def _direct_from(setting: Setting) -> int | None:
    """Return what `auto` finds in this run."""
    if setting.rehearsal:
        return None
    from shmbatch.executor.staging.runtime import TorchRuntime

    runtime = TorchRuntime(0)
    chosen = measured(runtime, runtime.Stream())
    return None if chosen == NEVER else chosen


def _ceiling(setting: Setting, nbytes: int, copies: int) -> float:
    """Return the GB/s of so many copies from pinned memory, begun behind one another."""
    hosts = [setting.pinned(torch.ones(nbytes, dtype=torch.uint8)) for _ in range(copies)]
    devices = [torch.empty(nbytes, dtype=torch.uint8, device=setting.device) for _ in hosts]

    def copy() -> None:
        for host, device in zip(hosts, devices, strict=True):
            device.copy_(host, non_blocking=True)

    times = [setting.seconds(copy) for _ in range(ROUNDS + 2)]
    return copies * nbytes / median(times[2:]) / 1e9


class _World:
    """Producers' rings and the executor's staging for rows of one size, in this process."""

    def __init__(self, device: Device, nbytes: int, producers: int, direct: bool) -> None:
        self.neighbours = 0.0
        self._nbytes = nbytes
        self._device = device
        signature = Signature(
            (Column("rows", "array", "torch", "uint8", (nbytes,)),),
            Column("result", "array", "torch", "uint8", (1,)),
        )
        where = segment_layout(signature, ROWS * BATCHES // producers)
        self._direct = device.direct(signature, where, direct, "gpu.copies")
        self._staging = Staging(
            signature,
            ROWS,
            device,
            direct=self._direct,
            address="gpu.copies",
            module=None,
            record_nbytes=where.error_nbytes,
        )
        self._bell = mmap.mmap(-1, layout.BELL_NBYTES)
        Bell(self._bell)
        self._inbox = Inbox()
        self._rings: list[tuple[ProducerRing, ExecutorRing]] = []
        self._registrations = []
        for _ in range(producers):
            fd = os.memfd_create("gpu-copies")
            os.posix_fallocate(fd, 0, where.nbytes)
            memory = mmap.mmap(fd, where.nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            os.close(fd)
            shared = ring_arguments(memory, signature, where)
            ring = ExecutorRing(*(*shared, layout.LAYOUT_VERSION))
            producer = ProducerRing(*(*shared, self._bell, lambda bits: None, None))
            self._rings.append((producer, ring))
            self._inbox.attach(ring, 0)
            if self._direct is not None:
                registration = self._direct.register(ring, memory)
                if registration is None:
                    raise RuntimeError(f"CUDA does not register {where.nbytes} bytes of a memfd")
                self._registrations.append(registration)
        self._batches = [Batch(ROWS) for _ in range(BATCHES)]

    def rate(self, setting: Setting, pool: Any, random: np.random.Generator) -> float:
        """Return the GB/s of one run; compare the rows of its first round."""
        times = [self._round(setting, pool, random, at == 0) for at in range(ROUNDS + 1)]
        return ROWS * BATCHES * self._nbytes / median(times[1:]) / 1e9

    def close(self) -> None:
        for registration in self._registrations:
            registration.close()

    def _round(
        self, setting: Setting, pool: Any, random: np.random.Generator, compare: bool
    ) -> float:
        given: dict[tuple[ExecutorRing, int], Any] = {}  # by ring and slot
        tickets = []
        for number in range(ROWS * BATCHES):
            at = int(random.integers(0, len(pool) - self._nbytes))
            row = pool[at : at + self._nbytes]
            producer, executor = self._rings[number % len(self._rings)]
            ticket = producer.submit((row,), 0)
            assert ticket >= 0, ticket
            given[executor, ticket & TICKET_SLOT_MASK] = row
            tickets.append((producer, ticket))
        now_ns = time.monotonic_ns()
        for batch in self._batches:
            self._inbox.drain(now_ns)
            assert self._inbox.take(batch, ROWS, now_ns) == ROWS
        runs = [run for batch in self._batches for run in batch.runs()]
        self.neighbours = ROWS * BATCHES / len(runs)
        inputs: list[Any] = []

        def gather() -> None:
            inputs.extend(self._staging.gather(batch)[0][0] for batch in self._batches)

        seconds = setting.seconds(gather)
        if compare and not setting.rehearsal:  # there all batches share one buffer
            got = np.concatenate([rows.cpu().numpy() for rows in inputs])
            right = [given[ring, first + at] for ring, first, count in runs for at in range(count)]
            wrong = [at for at, row in enumerate(right) if not np.array_equal(got[at], row)]
            if wrong:
                raise WrongAnswer(f"rows {wrong} of {self._nbytes} bytes are not what was given")
        for batch in self._batches:
            assert batch.scatter(np.zeros((ROWS, 1), np.uint8))
            batch.complete()
        for producer, ticket in reversed(tickets):  # the slot freed last is used first
            producer.poll(ticket, 0)
        return seconds


@contextmanager
def _worlds(device: Device, nbytes: int) -> Iterator[dict[str, _World]]:
    worlds: dict[str, _World] = {}
    try:
        for pattern, producers in PATTERNS.items():
            for way in ("gathered", "direct"):
                world = _World(device, nbytes, producers, way == "direct")
                worlds[f"{way}, {pattern}"] = world
        yield worlds
    finally:
        for world in worlds.values():
            world.close()


def _size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >> 20 else f"{nbytes >> 10} KiB"
