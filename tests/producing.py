"""A producer that makes the calls of a plan in the way the plan says, and tells the results."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import shmbatch

WAYS = (
    *("remote", "threads", "spawn", "backwards"),
    *("map", "unordered", "gather", "map.aio", "loops"),
)


def arguments(key: int) -> tuple[int, float, Any]:
    """What the call with this key is given; every argument tells the key."""
    return key, float(2 * key), np.array([3 * key, -key])


def expected(key: int) -> list[int]:
    """The part of its result that does not depend on its batch."""
    return [key, 2 * key, 3 * key, -key]


def produce(name: str, plan: list[Any]) -> list[list[int]]:
    """Do one part of a plan: [function, way, first key, count, batch of it that goes at once]."""
    function, way, first, count, crowd = plan
    handle = shmbatch.connect(f"{name}.{function}")
    keys = range(first, first + count)

    def inputs() -> Iterator[tuple[Any, ...]]:
        pause = threading.Event()
        for at, key in enumerate(keys):
            if at % crowd == crowd - 1:
                pause.wait(0.0005)  # arrivals come in crowds
            yield arguments(key)

    async def mapped() -> list[Any]:
        return [result async for result in handle.starmap.aio(inputs())]

    async def gathered(some: list[tuple[Any, ...]]) -> list[Any]:
        return await asyncio.gather(*(handle.remote.aio(*each) for each in some))

    if way == "remote":
        results = [handle.remote(*each) for each in inputs()]
    elif way == "threads":
        with ThreadPoolExecutor(crowd) as threads:
            results = list(threads.map(lambda each: handle.remote(*each), inputs()))
    elif way in ("spawn", "backwards"):
        pending = [handle.spawn(*each) for each in inputs()]
        if way == "backwards":
            results = [call.get() for call in reversed(pending)][::-1]
        else:
            results = [call.get() for call in pending]
    elif way == "map":
        results = list(handle.starmap(inputs()))
    elif way == "unordered":
        results = list(handle.starmap(inputs(), order_outputs=False))
        results.sort(key=lambda result: int(result[0]))
    elif way == "gather":
        results = asyncio.run(gathered(list(inputs())))
    elif way == "map.aio":
        results = asyncio.run(mapped())
    else:
        halves = list(inputs())[::2], list(inputs())[1::2]
        with ThreadPoolExecutor(2) as threads:
            even, odd = threads.map(lambda half: asyncio.run(gathered(half)), halves)
        results = [(odd if at % 2 else even)[at // 2] for at in range(count)]
    return [result.tolist() for result in results]


def main() -> None:
    """Read a line of plans, do them at once in a thread each, print the results; again."""
    for line in sys.stdin:
        plans = json.loads(line)
        with ThreadPoolExecutor(max(1, len(plans))) as threads:
            answers = list(threads.map(lambda plan: produce(sys.argv[1], plan), plans))
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
