"""What a batched function may ask of a GPU beside its memory."""

from __future__ import annotations

from typing import cast

from ..errors import ConfigError
from .checking import shown
from .columns import Column
from .definition import Definition, DirectDma


def direct_dma_mode(direct_dma: object) -> DirectDma:
    """Check what a person wrote as ``direct_dma``.

    Raises:
        ConfigError: it is neither True nor False nor ``"auto"``.
    """
    # Not `in`: 1 equals True, and an array compares with anything.
    if isinstance(direct_dma, bool) or (isinstance(direct_dma, str) and direct_dma == "auto"):
        return cast(DirectDma, direct_dma)
    raise ConfigError(f"direct_dma is {shown(direct_dma)}; use 'auto', True or False")


def graphs_wanted(cuda_graphs: object, batch_sizes: tuple[int, ...] | None) -> bool:
    """Check what a person wrote as ``cuda_graphs``; `check_graphs` looks at the function.

    Raises:
        ConfigError: it is no bool, or True without *batch_sizes*.
    """
    if not isinstance(cuda_graphs, bool):
        raise ConfigError(f"cuda_graphs is {shown(cuda_graphs)}; use True or False")
    if cuda_graphs and batch_sizes is None:
        raise ConfigError(
            "cuda_graphs=True without batch_sizes: one graph is captured for each allowed size; "
            "add them, as in batch_sizes=(1, 8, 32)"
        )
    return cuda_graphs


def check_graphs(definition: Definition, name: str) -> None:
    """Refuse to capture graphs of a function whose work, or whose memory, they cannot fix.

    Args:
        name: of the function, in the message of an error, as in ``sums.batch_add``.

    Raises:
        ConfigError: graphs are wanted, and the function is async, or a parameter or the result
            is no torch tensor of fixed shape.
    """
    if not definition.cuda_graphs:
        return
    if definition.is_async:
        raise ConfigError(
            f"{name} is async, and what it awaits cannot be captured with cuda_graphs=True; "
            "write it with def, or drop cuda_graphs"
        )
    signature = definition.signature
    for column in (*signature.parameters, signature.result):
        if column.kind != "array" or column.library != "torch":
            what = "result" if column is signature.result else f"parameter {column.name!r}"
            raise ConfigError(
                f"{what} of {name} is {_described(column)}, but cuda_graphs=True needs torch "
                'tensors of fixed shape, as in Float32[Tensor, "batch 16"]; '
                "annotate it so, or drop cuda_graphs"
            )


def _described(column: Column) -> str:
    return "pickled" if column.kind == "pickle" else column.annotation
