"""How far a map has come, as a bar on standard error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import aclosing, closing
from typing import Any

from ..errors import ConfigError


def shown(results: Iterator[Any], what: str, iterables: tuple[Any, ...]) -> Iterator[Any]:
    """Return an iterator that yields *results*, and shows how many have been yielded.

    Args:
        what: stands beside the bar.
        iterables: what the inputs come from; if all have a length, it is known how many.

    Raises:
        ConfigError: rich is not installed.
    """
    return _shown(results, _bar(), what, iterables)


def shown_aio(
    results: AsyncIterator[Any], what: str, iterables: tuple[Any, ...]
) -> AsyncIterator[Any]:
    """As `shown`, for event loops."""
    return _shown_aio(results, _bar(), what, iterables)


def _shown(results: Any, bar: Any, what: str, iterables: tuple[Any, ...]) -> Iterator[Any]:
    with closing(results), bar:
        task = bar.add_task(what, total=_total(iterables))
        for result in results:
            bar.advance(task)
            yield result


async def _shown_aio(
    results: Any, bar: Any, what: str, iterables: tuple[Any, ...]
) -> AsyncIterator[Any]:
    async with aclosing(results):
        with bar:
            task = bar.add_task(what, total=_total(iterables))
            async for result in results:
                bar.advance(task)
                yield result


def _total(iterables: tuple[Any, ...]) -> int | None:
    if not iterables or not all(isinstance(each, Sized) for each in iterables):
        return None
    return min(map(len, iterables))


def _bar() -> Any:
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        raise ConfigError(
            "progress=True needs rich; install it with `pip install 'shmbatch[cli]'`"
        ) from None
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True))
