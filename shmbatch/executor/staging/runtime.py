"""What the staging needs of CUDA: a `Runtime`, and the one that is torch's.

`Cuda`, `Graphs` and `Direct` decide what happens in which order; a runtime does it, and decides
nothing. So they can be run on one that is not there: the tests have a device whose streams and
events are as late, and as far out of order, as CUDA allows.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ...contract.columns import WIRE_DTYPES
from ...errors import ConfigError
from .batched import BatchedCopies, cudart

log = logging.getLogger("shmbatch.executor")

_REGISTER_PORTABLE, _REGISTER_MAPPED = 1, 2
_BATCHED_MIN = 4  # copies that are worth one call for all of them


class Event(Protocol):
    """A point in a stream."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None:
        """Sleep until the stream has come to where it was recorded."""

    def query(self) -> bool:
        """Say whether it has."""


class Stream(Protocol):
    """What is started in it happens in this order."""

    def wait_event(self, event: Any) -> None:
        """What is started in it later happens after what the event was recorded behind."""


class Graph(Protocol):
    """Work that was captured once."""

    def replay(self) -> None:
        """Start it again, in the current stream."""


class Runtime(Protocol):
    """One device. Names, and what they mean, are those of torch.cuda."""

    name: str  # "cuda:0"

    def Stream(self) -> Stream: ...

    def Event(self) -> Event:
        """Return an event whose `synchronize` sleeps."""

    def stream(self, stream: Any) -> AbstractContextManager[object]:
        """What is started inside, by this thread, goes to *stream*."""

    def set_stream(self, stream: Any) -> None:
        """The same from now on."""

    def pinned(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return zeroed, page-locked memory, as an array of the wire's dtype and as a tensor."""

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return a tensor on the device."""

    def tensor(self, array: Any, dtype: str) -> Any:
        """Return an array's memory, of the wire's dtype, as a tensor on the host."""

    def set_device(self) -> None:
        """Make it the calling thread's device; else that would touch the first one."""

    def is_ours(self, value: Any) -> bool:
        """Say whether *value* is a tensor on this device."""

    def plain(self, tensor: Any) -> Any:
        """Return a tensor of ours as its bytes are to be copied: nothing left to be computed."""

    def to_device(self, tensor: Any) -> Any:
        """Return a copy on the device. May block."""

    def capture(self, body: Callable[[], Any], stream: Any) -> tuple[Graph, Any]:
        """Capture what *body* starts instead of doing it; return that, and what it returned.

        Raises:
            RuntimeError: it did what cannot be captured, such as waiting for the device.
        """

    def register(self, address: int, nbytes: int) -> bool:
        """Lock pages and map them for the device; False, and nothing has changed, if it cannot."""

    def unregister(self, address: int) -> None:
        """Undo `register`; nothing may be copying out of the pages any more."""

    def copy_runs(self, pairs: Sequence[tuple[Any, Any]], stream: Any) -> None:
        """Start copying, in *stream*, each second tensor of a pair into the first."""

    def prepare_copies(self, stream: Any) -> None:
        """Find out how `copy_runs` copies soonest. May block."""

    def synchronize(self) -> None:
        """Wait until everything that was started is over; may burn a CPU."""

    def is_lost(self, error: BaseException) -> bool:
        """Say whether *error* has broken the device for this process."""


class TorchRuntime:
    """A CUDA device through torch."""

    def __init__(self, index: int) -> None:
        self._torch = torch = importlib.import_module("torch")
        self._device = torch.device("cuda", index)
        self.name = f"cuda:{index}"
        torch.cuda.set_device(self._device)
        self.Stream: Callable[[], Stream] = torch.cuda.Stream
        self.stream = torch.cuda.stream
        self.set_stream = torch.cuda.set_stream
        self._cudart = torch.cuda.cudart()
        self._batched: BatchedCopies | None = None
        torch.zeros(1, device=self._device)  # now, not later, it says if it may not be used
        torch.cuda.synchronize(self._device)

    def Event(self) -> Event:
        # Not torch.Event, which spins on CUDA whatever `blocking` says.
        event: Event = self._torch.cuda.Event(blocking=True)
        return event

    def pinned(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, Any]:
        host = self._torch.zeros(shape, dtype=getattr(self._torch, dtype), pin_memory=True)
        array = np.asarray(host.view(self._torch.uint8).reshape(-1)) if host.numel() else None
        wire = WIRE_DTYPES[dtype]
        return (np.zeros(shape, wire) if array is None else array.view(wire).reshape(shape)), host

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Any:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), device=self._device)

    def tensor(self, array: Any, dtype: str) -> Any:
        return self._torch.from_numpy(array).view(getattr(self._torch, dtype))

    def set_device(self) -> None:
        self._torch.cuda.set_device(self._device)

    def plain(self, tensor: Any) -> Any:
        # An asynchronous copy would do what these bits say on the host, before the bytes come.
        return tensor.detach().resolve_conj().resolve_neg()

    def is_ours(self, value: Any) -> bool:
        return isinstance(value, self._torch.Tensor) and value.device == self._device

    def to_device(self, tensor: Any) -> Any:
        return tensor.to(self._device)

    def capture(self, body: Callable[[], Any], stream: Any) -> tuple[Graph, Any]:
        graph = self._torch.cuda.CUDAGraph()
        cause: Exception | None = None
        try:
            with self._torch.cuda.graph(graph, stream=stream):
                try:
                    value = body()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:  # the end of a failed capture has an error of its own
            try:
                raise cause or error from None
            finally:
                cause = None  # or its traceback and this frame would keep the graph's memory
        return graph, value

    def register(self, address: int, nbytes: int) -> bool:
        flags = _REGISTER_PORTABLE | _REGISTER_MAPPED
        with self._torch.cuda.device(self._device):  # of this thread, which may be any
            status = int(self._cudart.cudaHostRegister(address, nbytes, flags))
        if status:
            _forget_last_error()
        return status == 0

    def unregister(self, address: int) -> None:
        with self._torch.cuda.device(self._device):
            if int(self._cudart.cudaHostUnregister(address)):
                _forget_last_error()

    def copy_runs(self, pairs: Sequence[tuple[Any, Any]], stream: Any) -> None:
        if len(pairs) >= _BATCHED_MIN and self._copies_in_one_call(pairs, stream):
            return
        with self.stream(stream):
            for to, source in pairs:
                to.copy_(source, non_blocking=True)

    def _copies_in_one_call(self, pairs: Sequence[tuple[Any, Any]], stream: Any) -> bool:
        """Start all copies in one call; False, and none is started, where CUDA cannot."""
        if self._batched is None:
            return False
        status = self._batched.start(pairs, stream.cuda_stream)
        if status:
            self._batched = None
            _forget_last_error()
            log.warning("each copy is started by itself: CUDA's status was %d", status)
        return status == 0

    def prepare_copies(self, stream: Any) -> None:
        if self._batched is not None:
            return
        try:
            host = self._torch.arange(1, 65, dtype=self._torch.uint8).reshape(8, 8).pin_memory()
            rows = self._torch.zeros((8, 8), dtype=self._torch.uint8, device=self._device)
            self.synchronize()
            self._batched = BatchedCopies(cudart())
            pairs = [(rows[at : at + 1], host[7 - at : 8 - at]) for at in range(8)]
            if self._copies_in_one_call(pairs, stream):
                self.synchronize()
                if not self._torch.equal(rows.cpu(), host.flip(0)):
                    raise RuntimeError("CUDA copied wrong")
        except (AttributeError, OSError, RuntimeError) as error:
            self._batched = None
            log.info("each copy is started by itself: %s", error)

    def synchronize(self) -> None:
        self._torch.cuda.synchronize(self._device)

    def is_lost(self, error: BaseException) -> bool:
        # Most errors are the function's own; only those of CUDA are worth a question to it.
        try:
            if not issubclass(type(error), RuntimeError) or "CUDA error" not in str(error):
                return False
        except BaseException:  # a class of the user's
            return False
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False


def first_line(error: BaseException) -> str:
    """Return what an error of CUDA says; its other lines are advice."""
    return str(error).partition("\n")[0]


def _forget_last_error() -> None:
    """Take the error of a failed call out of CUDA's memory, or the next kernel would report it."""
    library = cudart()
    if library is None:
        log.warning("no libcudart is loaded: the next kernel may report a failed registration")
    else:
        library.cudaGetLastError()


def cuda_runtime(device: str) -> Runtime | None:
    """Return the runtime of ``"cuda"``, ``"cuda:N"``; None for ``"auto"`` where there is none.

    Raises:
        ConfigError: there is no such device, or torch cannot use it.
    """
    wanted = device != "auto"
    torch: Any = None
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        pass
    reason = _missing(torch)
    if reason is not None:
        if wanted:
            raise ConfigError(f"device is {device!r}, but {reason}, or use device cpu")
        return None
    _, _, number = device.partition(":")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"device is {device!r}, but torch sees {count} CUDA devices, cuda:0 to "
            f"cuda:{count - 1}; use one of them"
        )
    try:
        return TorchRuntime(index)
    except RuntimeError as error:
        reason = f"cuda:{index} cannot be used: {first_line(error)}"
        if not wanted:
            log.warning("%s; functions on tensors run on the CPU", reason)
            return None
        raise ConfigError(
            f"{reason}; see whether another process has it for itself, or use device cpu"
        ) from error


def _missing(torch: Any) -> str | None:
    """Say what there is to do before torch sees a GPU; None if it does."""
    if torch is None:
        return "torch is not installed; install it with `pip install shmbatch[torch]`"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build that has it"
    if not torch.cuda.is_available():
        return (
            f"torch {torch.__version__} sees no CUDA device; check nvidia-smi and "
            f"CUDA_VISIBLE_DEVICES"
        )
    return None
