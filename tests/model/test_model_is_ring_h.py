"""Decides whether the model still has the numbers of ring.h."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model import ring_steps

RING_H = Path(__file__).parents[2] / "shmbatch" / "protocol" / "ring.h"

NAMES = {
    "RING_FREE": ring_steps.FREE,
    "RING_READY": ring_steps.READY,
    "RING_TAKEN": ring_steps.TAKEN,
    "RING_DONE": ring_steps.DONE,
    "RING_CANCELLED": ring_steps.CANCELLED,
    "RING_ABANDONED": ring_steps.ABANDONED,
    "RING_STATE_MASK": ring_steps.STATE_MASK,
    "RING_WAITER": ring_steps.WAITER,
    "RING_ASYNC": ring_steps.ASYNC,
    "RING_GENERATION_SHIFT": ring_steps.GENERATION_SHIFT,
    "RING_BELL_PARKED": ring_steps.PARKED,
    "RING_BELL_POLLING": ring_steps.POLLING,
    "RING_BELL_STEP": ring_steps.STEP,
    "RING_LOOP_STEP": ring_steps.LOOP_STEP,
    "RING_LOOPS_MASK": ring_steps.LOOPS_MASK,
    "RING_THREAD_STEP": ring_steps.THREAD_STEP,
    "RING_THREADS_MASK": ring_steps.THREADS_MASK,
    "RING_COMPLETION_STEP": ring_steps.COMPLETION_STEP,
    "RING_IDLE": ring_steps.IDLE,
    "RING_WAITING": ring_steps.WAITING,
    "RING_RUNNING": ring_steps.RUNNING,
    "RING_OPEN": ring_steps.OPEN,
    "RING_DRAINING": ring_steps.DRAINING,
    "RING_CLOSED": ring_steps.CLOSED,
    "RING_EXPELLED": ring_steps.EXPELLED,
    "RING_REPLACED": ring_steps.REPLACED,
}


def constant(name: str) -> int:
    """Return the value that ring.h gives to a constant, in an enum or by #define."""
    found = re.search(
        rf"(?:#define {name} |\b{name} = )(0x[0-9A-Fa-f]+|\d+)", RING_H.read_text(encoding="utf-8")
    )
    assert found is not None, f"ring.h does not define {name}"
    return int(found[1], 0)


@pytest.mark.parametrize(("name", "modelled"), NAMES.items())
def test_constant_is_that_of_ring_h(name: str, modelled: int) -> None:
    assert constant(name) == modelled


def test_flags_do_not_overlap_states_or_generation() -> None:
    fields = [
        ring_steps.STATE_MASK,
        ring_steps.WAITER,
        ring_steps.ASYNC,
        constant("RING_GENERATION_MASK") << ring_steps.GENERATION_SHIFT,
    ]
    assert sum(fields) == fields[0] | fields[1] | fields[2] | fields[3]


def test_counts_do_not_carry_into_the_bits_below_them() -> None:
    assert ring_steps.STEP > ring_steps.PARKED | ring_steps.POLLING
    assert ring_steps.THREAD_STEP > ring_steps.LOOPS_MASK
    assert ring_steps.COMPLETION_STEP > ring_steps.LOOPS_MASK | ring_steps.THREADS_MASK


# What a step of the model stands for: each atomic operation of ring.h, function by function.
ATOMICS = {
    "ring_publish": ["store", "store", "store", "store", "store"],  # the stamps are payload
    "ring_is_open": ["load"],
    "ring_look": ["load"],
    "ring_arm": ["fetch_or"],
    "ring_withdraw": ["load", "compare_exchange", "fetch_add"],
    "ring_release": ["load", "store"],
    "ring_join_completions": ["fetch_add"],
    "ring_leave_completions": ["fetch_sub"],
    "ring_bell_ring": ["fetch_add", "load"],
    "ring_bell_look": ["load"],
    "ring_bell_arm": ["store", "compare_exchange"],
    "ring_bell_disarm": ["fetch_and"],
    "ring_free": ["compare_exchange"],
    "ring_sweep": ["load", "load"],
    "ring_drain": ["load", "load", "load"],
    "ring_take": ["load", "compare_exchange"],
    "ring_expired": ["load"],  # payload of a slot that is taken
    "ring_complete": ["store", "store", "load", "compare_exchange"],
    "ring_notify": ["fetch_add"],
}


def test_every_atomic_operation_of_ring_h_is_one_the_model_knows() -> None:
    """A new one, or one moved elsewhere, has to be modelled before this list may change."""
    functions = re.split(r"^static inline", RING_H.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {}
    for text in functions[1:]:
        name = re.search(r"\b(ring_\w+)\(", text)
        assert name is not None
        operations = re.findall(
            r"\batomic_(load|store|fetch_\w+?|compare_exchange)(?:_weak|_strong)?_explicit", text
        )
        if operations:
            found[name[1]] = operations
    assert found == ATOMICS


# Outside of ring.h: what else orders one side's words against the other's; where it is modelled.
ELSEWHERE = {
    "executor.c": ["store"],  # the status, in test_model_reload.py
    "producer.c": ["fetch_add", "load"],  # own threads woken; the status, for people
    "moving.c": ["store", "load", "exchange", "fetch_add", "fetch_add"],  # test_model_move.py
}


def test_every_order_outside_of_ring_h_is_one_the_model_knows() -> None:
    found = {}
    for path in sorted(RING_H.parent.glob("*.c")):
        operations = re.findall(
            r"\batomic_(\w+)_explicit\b[^;]*?memory_order_(\w+)", path.read_text(encoding="utf-8")
        )
        ordering = [operation for operation, order in operations if order != "relaxed"]
        if ordering:
            found[path.name] = ordering
    assert found == ELSEWHERE
