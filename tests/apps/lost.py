"""Functions of an executor whose device is lost, as far as an executor can tell without one."""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

import shmbatch
from shmbatch.executor import dying
from shmbatch.executor.delivery import Delivery
from shmbatch.executor.served import ServedFunction
from tests import processes

app = shmbatch.App()

# As torch says it: what happened, then advice.
ILLEGAL = """CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1"""


class AcceleratorError(RuntimeError):
    """Called like torch's."""


class Deaf(logging.Handler):
    """A log that nobody reads."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.CRITICAL:
            threading.Event().wait()


class Destroyed:
    """Something on a lost device: who destroys it waits for ever."""

    def __del__(self) -> None:
        os.read(os.pipe()[0], 1)


def lose() -> None:
    """Have the batch in progress find the device lost."""

    def complete(self: ServedFunction) -> Any:
        try:
            raise AcceleratorError(ILLEGAL)
        except AcceleratorError as error:
            raise dying.DeviceLost.because(error, self.address) from error

    ServedFunction.complete = complete  # type: ignore[method-assign]
    # A batch that a function on the CPU has run well would be completed before that.
    Delivery.scattered = lambda self, batch, value: False  # type: ignore[method-assign]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def double(xs: list[int]) -> list[int]:
    return [2 * x for x in xs]


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=600_000)
def never(xs: list[int]) -> list[int]:
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def loses(xs: list[int]) -> list[int]:
    """Loses the device once the gate is open; an object on it must not be destroyed."""
    processes.pass_through(xs)
    globals()["kept"] = Destroyed()
    lose()
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
async def suspends(xs: list[int]) -> list[int]:
    """The same of an async function."""
    lose()
    return xs


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def forks(xs: list[int]) -> list[int]:
    """Starts a child that has all of the executor's descriptors, then loses the device."""
    child = os.fork()
    if child == 0:
        while True:
            os.read(os.pipe()[0], 1)
    lose()
    return [child] * len(xs)


@app.function()
@shmbatch.batched(max_batch_size=4, wait_ms=0)
def unread(xs: list[int]) -> list[int]:
    """Loses the device where logging never returns."""
    logging.getLogger("shmbatch").addHandler(Deaf())
    dying.PATIENCE_S = 0.2
    lose()
    return xs
