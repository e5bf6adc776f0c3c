"""Memory of the fake GPU: its tensors, their blocks, and what poison looks like.

::

    Tensor ---> Storage ---> Block: memory of the device, and the stream that allocated it
    a view of   as long as
    a block     any view lives

Numbers are kept and computed by torch on the CPU; tensors of the host are torch's own. What an
operation has yet to write is poison: NaN where the dtype has it, else bytes of 0xDB. Operations
hold blocks and no `Storage`: as with torch, only Python's own references keep a tensor's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from tests.executor.fake_gpu import FakeGpu
    from tests.executor.fake_gpu_streams import Graph, Stream

POISON_BYTE = 0xDB


def poison(dtype: Any) -> Any:
    """Return one element that nobody takes for a value, without axes."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full((), float("nan")).to(dtype)
    return torch.full((dtype.itemsize,), POISON_BYTE, dtype=torch.uint8).view(dtype)[0]


def poisoned(shape: tuple[int, ...], dtype: Any) -> Any:
    return poison(dtype).expand(shape).clone()


def is_poisoned(tensor: Any) -> bool:
    """Whether all elements of a tensor of the host are poison."""
    mine = tensor.reshape(-1).view(torch.uint8)
    return bool(
        torch.equal(mine, poisoned(tensor.shape, tensor.dtype).reshape(-1).view(torch.uint8))
    )


class Block:
    """An allocation. What is freed is not handed out again, but some see it as if it were."""

    def __init__(self, stream: Stream, graph: Graph | None) -> None:
        self.stream = stream  # on which it is allocated, and used again
        self.graph = graph  # in whose capture it was allocated, and which keeps it
        self.recorded: set[Stream] = set()
        self.freed = False


class Storage:
    """What the views of a block share: when the last of them goes, the block is free."""

    def __init__(self, gpu: FakeGpu, block: Block) -> None:
        self.block = block
        self._gpu = gpu

    def __del__(self) -> None:
        self._gpu.free(self.block)


class Access(NamedTuple):
    """What an operation reads or writes."""

    block: Block | None  # None: memory of the host
    data: Any


class Tensor:
    """A tensor on the device. What is done with it is queued on the current stream.

    A slice or `reshape` is a view, everything else that torch can do with tensors a new one.
    """

    is_cuda = True
    requires_grad = False
    __class__ = property(lambda self: torch.Tensor)  # to isinstance

    def __init__(self, gpu: FakeGpu, storage: Storage, data: Any) -> None:
        self.gpu = gpu
        self.data = data  # what the device has there now; for tests to look at
        self._storage = storage

    def __repr__(self) -> str:
        return f"<{self.dtype} of shape {tuple(self.shape)} on {self.device}>"

    @property
    def access(self) -> Access:
        return Access(self._storage.block, self.data)

    # ---- what the host knows without waiting ----

    @property
    def device(self) -> str:
        return self.gpu.name

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    @property
    def shape(self) -> Any:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return int(self.data.ndim)

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def __len__(self) -> int:
        return len(self.data)

    def numel(self) -> int:
        return int(self.data.numel())

    def element_size(self) -> int:
        return int(self.data.element_size())

    def data_ptr(self) -> int:
        return int(self.data.data_ptr())

    def stride(self) -> tuple[int, ...]:
        return tuple(self.data.stride())

    def is_contiguous(self) -> bool:
        return bool(self.data.is_contiguous())

    # ---- views ----

    def _view(self, data: Any) -> Tensor:
        shared = data.untyped_storage().data_ptr() == self.data.untyped_storage().data_ptr()
        assert shared or not data.numel(), "the fake GPU knows views by slices and reshapes only"
        return Tensor(self.gpu, self._storage, data)

    def __getitem__(self, where: Any) -> Tensor:
        return self._view(self.data[where])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def reshape(self, *shape: Any) -> Tensor:
        return self._view(self.data.reshape(*shape))

    def view(self, *shape: Any) -> Tensor:
        return self._view(self.data.view(*shape))

    def detach(self) -> Tensor:
        return self._view(self.data)

    # ---- queued ----

    def copy_(self, source: Any, non_blocking: bool = False) -> Tensor:
        _copy(self.gpu, self, source, non_blocking)
        return self

    def fill_(self, value: Any) -> Tensor:
        self.gpu.enqueue("fill_", lambda: torch.tensor(value), self.access, ())
        return self

    def record_stream(self, stream: Stream) -> None:
        """Do not use the memory again before *stream* has done what it has when it is freed."""
        self._storage.block.recorded.add(stream)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for functions of its own that are given such a tensor."""
        if function is torch.Tensor.copy_:  # of a tensor on the host
            _copy(args[1].gpu, *args, **(kwargs or {}))
            return args[0]
        return _computed(function.__name__, function, *args, **(kwargs or {}))

    # ---- waiting for the current stream ----

    def cpu(self) -> Any:
        host = poisoned(self.shape, self.dtype)
        return host.copy_(self)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def item(self) -> Any:
        return self.cpu().item()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    # ---- refused ----

    def numpy(self) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.numpy()

    __hash__ = object.__hash__


def _method(name: str) -> Callable[..., Any]:
    function = getattr(torch.Tensor, name)
    shown = name.strip("_") if name.startswith("_") else name
    return lambda *operands, **options: _computed(shown, function, *operands, **options)


for _name in (
    *("add", "sub", "mul", "div", "neg", "matmul", "lt", "le", "gt", "ge", "eq", "ne"),
    *("radd", "rsub", "rmul"),
):
    setattr(Tensor, f"__{_name}__", _method(f"__{_name}__"))
for _name in ("sum", "any", "all", "clone", "to", "add_", "mul_", "sub_"):
    setattr(Tensor, _name, _method(_name))


def _copy(gpu: FakeGpu, into: Any, source: Any, non_blocking: bool = False) -> None:
    # Of the right shape, or to be repeated along axes.
    lengths = zip(reversed(source.shape), reversed(into.shape), strict=False)
    if len(source.shape) > len(into.shape) or any(a not in (1, b) for a, b in lengths):
        raise RuntimeError(
            f"The expanded size of the tensor {tuple(into.shape)} must match the existing size "
            f"{tuple(source.shape)}"
        )
    if not into.numel():
        return
    on_host = [each for each in (into, source) if not isinstance(each, Tensor)]
    at_once = any(not (non_blocking and gpu.is_locked(each)) for each in on_host)
    name = f"{_side(source)}2{_side(into)}"
    gpu.enqueue(name, lambda data: data, _access(into), (_access(source),), at_once=at_once)


def _computed(name: str, function: Any, *operands: Any, **options: Any) -> Tensor:
    """Queue what *function* computes from the operands; in place where torch would."""
    tensors: list[Tensor] = []

    places = [_placed(operand, tensors) for operand in operands]
    if any(type(each) is torch.Tensor and each.ndim for each in operands):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{tensors[0].device} and cpu!"
        )

    def compute(*data: Any) -> Any:
        with torch.no_grad():
            return function(*(_known(each, data) for each in places), **options)

    sources = tuple(tensor.access for tensor in tensors)
    gpu = tensors[0].gpu
    if name.endswith("_"):
        into = tensors[0]
    else:
        alike = compute(*(torch.zeros(each.shape, dtype=each.dtype) for each in tensors))
        into = gpu.empty(alike.dtype, alike.shape)
    gpu.enqueue(name, compute, into.access, sources)
    return into


class _Place:
    """Where a tensor stands among the operands of a function."""

    def __init__(self, number: int) -> None:
        self.number = number


def _placed(operand: Any, tensors: list[Tensor]) -> Any:
    """Put places where tensors are: what is queued must not keep them alive."""
    if isinstance(operand, list | tuple):
        return [_placed(each, tensors) for each in operand]
    if isinstance(operand, Tensor):
        tensors.append(operand)
        return _Place(len(tensors) - 1)
    return operand


def _known(operand: Any, data: tuple[Any, ...]) -> Any:
    """Put data where places are."""
    if isinstance(operand, list):
        return [_known(each, data) for each in operand]
    return data[operand.number] if isinstance(operand, _Place) else operand


def _access(tensor: Any) -> Access:
    return tensor.access if isinstance(tensor, Tensor) else Access(None, tensor)


def _side(tensor: Any) -> str:
    return "D" if isinstance(tensor, Tensor) else "H"
