"""Decides what small concurrent programs can do under C11's memory orders, whatever the hardware.

Processes are written as for `tso_checker`, with an order for each operation. The machine is the
view-based one that yields the executions of RC11 [1, 2] without accesses that are sequentially
consistent: memory keeps all messages of each word in their modification order; each process has a
*view*, the oldest message of each word that it may still read. A store goes anywhere behind what
its process has seen; a read-modify-write goes right behind the message it read, and nothing comes
between the two. A released message carries its process's view, an acquiring read takes it over; so
does one of a message that read-modify-writes have put behind a released one. A fence that is
sequentially consistent exchanges views with all others of its kind.

What a C11 program must not do either, but RC11's executions rule out, is to read a store that
comes, in program order, after what depends on the read; the machine cannot show such a bug.

Accesses to plain memory are those of payloads. One that another process's access is not ordered
with is a data race, which is a violation, whatever is read.

A futex's wait and wake look at the word and at the sleepers under one lock of the kernel, so
either comes before the other: who sleeps after a wake has seen what its waker had.

[1] Lahav, Vafeiadis, Kang, Hur, Dreyer: Repairing sequential consistency in C/C++11. PLDI 2017.
[2] Kang, Hur, Lahav, Vafeiadis, Dreyer: A promising semantics for relaxed-memory concurrency.
    POPL 2017; without the promises.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

from tests.model.tso_checker import (
    ASLEEP,
    RUNNING,
    Checker,
    Model,
    Operation,
    Result,
    Violation,
)

RELAXED, ACQUIRE, RELEASE, ACQ_REL = "relaxed", "acquire", "release", "acq_rel"

View = tuple[int, ...]  # for each word, the number of a message
Message = tuple[int, View, bool]  # value, what it releases, whether it directly follows the last
# All words' messages; the view of the fences; for each word, that of its futex.
Memory = tuple[tuple[tuple[Message, ...], ...], View, tuple[View, ...]]
Views = tuple[View, View, View]  # current; once an acquire fence has come; at a release fence
Part = tuple[int, int, Views]  # mode, local state, views
State = tuple[Memory, tuple[Part, ...]]

READS = "'s readers"  # names the word whose messages are the reads of a plain one


# ---- operations -------------------------------------------------------------------------


def load(word: str, order: str) -> Operation:
    """Return any value of the word that this process may still read."""
    return "read", word, order, None


def store(word: str, value: int, order: str) -> Operation:
    return "put", word, value, order


def rmw(
    word: str, change: Callable[[int], int | None], text: str, order: str, failure: str = RELAXED
) -> Operation:
    """Replace the word by *change* of it, if that is not None, and return the old value."""
    return "change", word, change, (text, order, failure)


def add(word: str, value: int, order: str) -> Operation:
    return rmw(word, lambda old: old + value, f"add {value:#x}", order)


def set_bits(word: str, bits: int, order: str) -> Operation:
    return rmw(word, lambda old: old | bits, f"or {bits:#x}", order)


def clear_bits(word: str, bits: int, order: str) -> Operation:
    return rmw(word, lambda old: old & ~bits, f"and ~{bits:#x}", order)


def compare_and_swap(
    word: str, expected: int, value: int, order: str, failure: str = RELAXED
) -> Operation:
    """Succeeded if the old value returned is *expected*."""
    text = f"compare-and-swap {expected:#x} to {value:#x}"
    return rmw(word, lambda old: value if old == expected else None, text, order, failure)


def read(word: str) -> Operation:
    """Return the value of plain memory."""
    return "read plain", word, None, None


def write(word: str, value: int) -> Operation:
    return "write plain", word, value, None


def fence(kind: str = "seq_cst") -> Operation:
    return "order", "", kind, None


def sleep_on(word: str, expected: int) -> Operation:
    """Sleep until woken, unless the word differs from *expected*; return "woken" or "again"."""
    return "sleep", word, expected, None


def wake(word: str) -> Operation:
    """Wake all those asleep on the word."""
    return "wake", word, None, None


# ---- the machine ------------------------------------------------------------------------


def join(one: View, other: View) -> View:
    return tuple(map(max, one, other))


def placed(view: View, word: int, at: int) -> View:
    return (*view[:word], at, *view[word + 1 :])


class WeakChecker(Checker):
    """Explores one model whose operations are those of this module."""

    def __init__(self, model: Model, plain: tuple[str, ...] = ()) -> None:
        super().__init__(model)
        self.readers = {}
        for name in plain:
            self.readers[self.word_index[name]] = len(self.word_names)
            self.word_names.append(name + READS)
        self.none: View = (0,) * len(self.word_names)

    @staticmethod
    def value(memory: Any, word: int) -> int:
        value: int = memory[0][word][-1][0]
        return value

    def _first(self) -> Any:
        values = [*self.model.words.values(), *(0 for _ in self.readers)]
        words = tuple(((value, self.none, False),) for value in values)
        views = (self.none, self.none, self.none)
        parts = tuple((RUNNING, table.start()[0], views) for table in self.tables)
        return (words, self.none, (self.none,) * len(words)), parts

    def _successors(self, state: Any) -> Iterator[tuple[bool, Any, tuple[int, str, Any]]]:
        memory, parts = state
        for index, (mode, local, _views) in enumerate(parts):
            operation = self.tables[index].operations[local]
            if mode == ASLEEP or operation is None:
                continue
            for step, kind, detail in self._steps(memory, parts, index, operation):
                yield kind != "go on", self._forgotten(step), (index, kind, detail)

    def _steps(
        self, memory: Memory, parts: tuple[Part, ...], index: int, operation: Operation
    ) -> Iterator[tuple[State, str, Any]]:
        kind, name, argument, extra = operation
        views = parts[index][2]
        if kind == "choose":
            for choice in range(argument):
                yield (memory, self._went(parts, index, choice, views)), kind, choice
            return
        if kind == "go on":
            yield (memory, self._went(parts, index, None, views)), kind, None
            return
        if kind == "order":
            yield self._fenced(memory, parts, index, argument), kind, argument
            return
        word = self.word_index[name]
        messages = memory[0][word]
        first = views[0][word]
        if kind == "read":
            for at in range(first, len(messages)):
                seen = self._saw(views, word, at, messages[at], argument)
                value = messages[at][0]
                yield (memory, self._went(parts, index, value, seen)), kind, value
        elif kind == "put":
            for at in range(first + 1, len(messages) + 1):
                if at == len(messages) or not messages[at][2]:
                    released = views[0] if extra in (RELEASE, ACQ_REL) else views[2]
                    after = self._put(memory, parts, word, at, argument, released, False)
                    yield self._stored(after, index, None, word, at), kind, argument
        elif kind == "change":
            yield from self._changed(memory, parts, index, operation)
        elif kind == "read plain":
            self._refuse_race(memory, views, index, word, name, "reads")
            aside = self.readers[word]
            at = len(memory[0][aside])
            after = self._put(memory, parts, aside, at, 0, self.none, False)
            value = messages[-1][0]
            yield self._stored(after, index, value, aside, at), kind, value
        elif kind == "write plain":
            self._refuse_race(memory, views, index, word, name, "writes")
            self._refuse_race(memory, views, index, self.readers[word], name, "writes")
            at = len(messages)
            after = self._put(memory, parts, word, at, argument, self.none, False)
            yield self._stored(after, index, None, word, at), kind, argument
        elif kind in ("sleep", "wake"):
            yield from self._futex(memory, parts, index, operation)
        else:
            raise TypeError(f"unknown operation {kind!r}")

    def _changed(
        self, memory: Memory, parts: tuple[Part, ...], index: int, operation: Operation
    ) -> Iterator[tuple[State, str, Any]]:
        _, name, change, (_, order, failure) = operation
        word = self.word_index[name]
        messages = memory[0][word]
        views = parts[index][2]
        for at in range(views[0][word], len(messages)):
            old, carried, _ = messages[at]
            new = change(old)
            if new is None:
                seen = self._saw(views, word, at, messages[at], failure)
                yield (memory, self._went(parts, index, old, seen)), "change", old
            elif at + 1 == len(messages) or not messages[at + 1][2]:
                seen = self._saw(views, word, at, messages[at], order)
                base = seen[0] if order in (RELEASE, ACQ_REL) else seen[2]
                carried = join(base, carried)
                mine = (*parts[:index], (*parts[index][:2], seen), *parts[index + 1 :])
                after = self._put(memory, mine, word, at + 1, new, carried, True)
                yield self._stored(after, index, old, word, at + 1), "change", old

    def _futex(
        self, memory: Memory, parts: tuple[Part, ...], index: int, operation: Operation
    ) -> Iterator[tuple[State, str, Any]]:
        kind, name, expected, _ = operation
        word = self.word_index[name]
        words, fences, futexes = memory
        _, local, views = parts[index]
        current = join(views[0], futexes[word])
        views = (current, join(views[1], current), views[2])
        futexes = (*futexes[:word], current, *futexes[word + 1 :])
        after = (words, fences, futexes)
        if kind == "wake":
            woken = []
            for other, (other_mode, other_local, other_views) in enumerate(parts):
                operation_of = self.tables[other].operations[other_local]
                if other_mode == ASLEEP and operation_of is not None and operation_of[1] == name:
                    parts = self._went(parts, other, "woken", other_views)
                    woken.append(self.names[other])
            yield (after, self._went(parts, index, None, views)), kind, woken
            return
        for at in range(current[word], len(words[word])):
            if words[word][at][0] == expected:
                asleep = (*parts[:index], (ASLEEP, local, views), *parts[index + 1 :])
                yield (after, asleep), kind, "asleep"
            else:
                resumed = self._went(parts, index, "again", views)
                yield (after, resumed), kind, "refused, the word has changed"

    # ---- views and messages ---------------------------------------------------------------

    @staticmethod
    def _saw(views: Views, word: int, at: int, message: Message, order: str) -> Views:
        current, later, released = views
        current, later = placed(current, word, at), placed(later, word, max(later[word], at))
        if order in (ACQUIRE, ACQ_REL):
            current = join(current, message[1])
        return current, join(join(later, message[1]), current), released

    def _put(
        self,
        memory: Memory,
        parts: tuple[Part, ...],
        word: int,
        at: int,
        value: int,
        released: View,
        follows: bool,
    ) -> State:
        """Insert a message; those behind it get another number in every view."""
        words, fences, futexes = memory
        if at < len(words[word]):

            def moved(view: View) -> View:
                return placed(view, word, view[word] + 1) if view[word] >= at else view

            words = tuple(
                tuple((value, moved(view), glued) for value, view, glued in messages)
                for messages in words
            )
            released, fences = moved(released), moved(fences)
            futexes = tuple(map(moved, futexes))
            parts = tuple(
                (mode, local, (moved(views[0]), moved(views[1]), moved(views[2])))
                for mode, local, views in parts
            )
        message = (value, placed(released, word, at), follows)
        messages = (*words[word][:at], message, *words[word][at:])
        return ((*words[:word], messages, *words[word + 1 :]), fences, futexes), parts

    def _stored(self, state: State, index: int, result: Any, word: int, at: int) -> State:
        memory, parts = state
        current, later, released = parts[index][2]
        views = (
            placed(current, word, at),
            placed(later, word, max(later[word], at)),
            released,
        )
        return memory, self._went(parts, index, result, views)

    def _went(
        self, parts: tuple[Part, ...], index: int, result: Any, views: Views
    ) -> tuple[Part, ...]:
        local, _ = self.tables[index].move(parts[index][1], result)
        return (*parts[:index], (RUNNING, local, views), *parts[index + 1 :])

    def _fenced(self, memory: Memory, parts: tuple[Part, ...], index: int, kind: str) -> State:
        words, fences, futexes = memory
        current, later, released = parts[index][2]
        if kind in (ACQUIRE, ACQ_REL, "seq_cst"):
            current = join(current, later)
        if kind == "seq_cst":
            fences = current = later = join(current, fences)
        if kind in (RELEASE, ACQ_REL, "seq_cst"):
            released = current
        after = (words, fences, futexes)
        return after, self._went(parts, index, None, (current, later, released))

    def _refuse_race(
        self, memory: Memory, views: Views, index: int, word: int, name: str, does: str
    ) -> None:
        if views[0][word] + 1 < len(memory[0][word]):
            raise Violation(f"data race: {self.names[index]} {does} {name}")

    def _forgotten(self, state: State) -> State:
        """Drop the messages that nobody can read any more; nothing else tells them apart."""
        (words, fences, futexes), parts = state
        living = [
            views[0]
            for index, (_, local, views) in enumerate(parts)
            if self.tables[index].operations[local] is not None
        ]
        if living:
            oldest = tuple(map(min, *living)) if len(living) > 1 else living[0]
        else:
            oldest = tuple(len(messages) - 1 for messages in words)
        if not any(oldest):
            return state

        def less(view: View) -> View:
            return tuple(
                at - gone if at > gone else 0 for at, gone in zip(view, oldest, strict=True)
            )

        words = tuple(
            tuple(
                (value, less(view), follows and number > 0)
                for number, (value, view, follows) in enumerate(messages[gone:])
            )
            for messages, gone in zip(words, oldest, strict=True)
        )
        parts = tuple(
            (mode, local, (less(views[0]), less(views[1]), less(views[2])))
            for mode, local, views in parts
        )
        return (words, less(fences), tuple(map(less, futexes))), parts

    # ---- traces ---------------------------------------------------------------------------

    def _shown(self, memory: Any) -> str:
        values = (messages[-1][0] for messages in memory[0])
        return super()._shown(tuple(values))

    def _added(self, state: Any, following: Any, index: int) -> str:
        return ""

    def _describe(self, state: Any, index: int, kind: str, detail: Any) -> str:
        operation = self.tables[index].operations[state[1][index][1]] or ("", "", None, None)
        _, name, argument, extra = operation
        if kind == "read":
            return f"load {name}, {argument} -> {detail:#x}"
        if kind == "put":
            return f"store {name} = {detail:#x}, {extra}"
        if kind == "change" and extra is not None:
            return f"{extra[0]} on {name}, {extra[1]}, was {detail:#x}"
        if kind in ("read plain", "write plain"):
            return f"{kind} {name}: {detail:#x}"
        if kind == "order":
            return f"fence {detail}"
        return super()._describe(state, index, kind, detail)


def explore(model: Model, plain: tuple[str, ...] = ()) -> Result:
    """Explore a model, whose words named in *plain* are no atomics, and print what was found."""
    gc.disable()
    try:
        result = WeakChecker(model, plain).explore()
    finally:
        gc.enable()
    print(result)
    return result
