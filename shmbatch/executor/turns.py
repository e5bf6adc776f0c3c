"""Who has to wait for whom: functions of one executor that must not run at the same time.

::

    at the same time                                     allowed
    ---------------------------------------------------  ------------------------------------
    batches of different functions, or batched methods   yes
    batches of one function from several of its queues   as many as of one queue
    a plain method and anything else of its instance     no
    plain methods of different instances                 yes

A plain method that is due and has to wait for batches in flight holds back those that became due
after it, or a stream of batches would keep it waiting for ever. On the CPU synchronous functions
occupy the loop while they run, so that nothing ever has to wait here, but for a batch in parts:
that one is in flight until its last part is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .served import ServedFunction


class Turns:
    """What is served of one instance, or of one function that has several queues."""

    def __init__(self) -> None:
        self.members: list[ServedFunction] = []

    def admit(self, function: ServedFunction) -> bool:
        """Say whether *function*, which is due, may launch a batch now."""
        if function.is_plain:
            return not any(each.is_busy for each in self.members)
        in_flight = 0
        for other in self.members:
            if other.is_plain:
                if other.is_busy or other.is_due_before(function):
                    return False
            elif other.definition.name == function.definition.name:
                in_flight += len(other.flights) + len(other.retries.waiting)
        return in_flight < function.depth


def share_instances(functions: Sequence[ServedFunction]) -> None:
    """Have methods of one instance, where it has plain ones, take turns."""
    for function in functions:
        instance = function.definition.instance
        if instance is None or not function.is_plain or function.turns is not None:
            continue
        turns = Turns()
        for member in functions:
            if member.definition.instance is instance:
                turns.members.append(member)
                member.turns = turns
