"""Decides which memory order ring.h gives to each of its atomic operations, by reading it."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

RING_H = Path(__file__).parents[2] / "shmbatch" / "protocol" / "ring.h"

# What a harness may put in the place of an order, to see whether it is missed.
WEAKER = {"acquire": ("relaxed",), "release": ("relaxed",), "acq_rel": ("acquire", "release")}


class Site(NamedTuple):
    """One order in ring.h; *failure* orders are those of a compare-and-swap that fails."""

    function: str
    number: int  # of the operation within the function, from 0
    operation: str
    failure: bool

    def __str__(self) -> str:
        return f"{self.function} {self.number} {self.operation}{' failure' * self.failure}"


class Order(NamedTuple):
    """An order, and where its name stands in the text."""

    name: str
    start: int
    end: int


def sites(text: str) -> dict[Site, Order]:
    """Return every order in the text of ring.h, as they stand there one after the other."""
    found = {}
    macros = dict(re.findall(r"#define (RING_\w+_ORDER) memory_order_(\w+)", text))
    functions = list(re.finditer(r"^static inline[^(]*?\b(ring_\w+)\(", text, re.MULTILINE))
    ends = [each.start() for each in functions[1:]] + [len(text)]
    for function, end in zip(functions, ends, strict=True):
        operations = re.finditer(
            r"\batomic_(load|store|fetch_\w+?|compare_exchange)(?:_weak|_strong)?_explicit"
            r"\([^;{]*?(memory_order_\w+|RING_\w+_ORDER)(?:,\s*(memory_order_\w+))?\)",
            text[function.start() : end],
        )
        for number, each in enumerate(operations):
            for group in (2, 3) if each[3] else (2,):
                name = macros.get(each[group], each[group].removeprefix("memory_order_"))
                span = (function.start() + each.start(group), function.start() + each.end(group))
                site = Site(function[1], number, each[1], failure=group == 3)
                found[site] = Order(name, *span)
    return found


@functools.cache
def ring_orders() -> dict[Site, str]:
    return {site: order.name for site, order in sites(RING_H.read_text(encoding="utf-8")).items()}


def weakened(text: str, site: Site, order: str) -> str:
    """Return the text of ring.h with another order in one place."""
    found = sites(text)[site]
    return f"{text[: found.start]}memory_order_{order}{text[found.end :]}"
